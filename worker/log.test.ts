import { Buffer } from 'node:buffer'
import fc from 'fast-check'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { KeptLog } from './keptLog.ts'
import { Mask } from './mask.ts'

const test = suite('worker’s log')

/** Bytes cut into chunks at random. */
const chunked = (alphabet: string) =>
  fc.array(
    fc.array(fc.constantFrom(...alphabet), { maxLength: 12 }).map((it) => it.join('')),
    { maxLength: 12 },
  )

test('secrets are masked the same however the output is cut', () => {
  const secret = fc.array(fc.constantFrom(...'aab.'), { minLength: 4, maxLength: 7 }).map((it) => it.join(''))
  fc.assert(
    fc.property(fc.array(secret, { minLength: 1, maxLength: 3 }), chunked('aab.'), (secrets, chunks) => {
      const mask = new Mask(secrets)
      const parts = [...chunks.map((chunk) => mask.push(Buffer.from(chunk))), mask.end()]
      assert.is(Buffer.concat(parts).toString(), new Mask(secrets).text(chunks.join('')))
    }),
    { numRuns: 500 },
  )
})

test('a secret is masked in other bytes than ASCII, line by line, and as part of a URL', () => {
  const mask = new Mask(['pässwört', '-----BEGIN-----\nabcdefgh', 'p@ss:word', 'abc'])
  assert.is(mask.text('é pässwört é'), 'é *** é')
  assert.is(mask.text('  abcdefgh\nhttps://x:p%40ss%3Aword@host/ abc'), '  ***\nhttps://x:***@host/ abc')
})

test('a line that can’t be the beginning of a secret is not held back', () => {
  const mask = new Mask(['secret-value'])
  assert.is(mask.push(Buffer.from('building… ')).toString(), 'building… ')
  assert.is(mask.push(Buffer.from('see')).toString(), 'see')
  assert.is(mask.push(Buffer.from('secret-')).toString(), '')
  assert.is(mask.push(Buffer.from('x')).toString(), 'secret-x')
})

test('head and tail are kept, in whole characters, at offsets that fit; what is taken in time is kept whole', () => {
  const limits = { headBytes: 40, tailBytes: 20, chunkBytes: 7 }
  fc.assert(
    fc.property(chunked('abé€'), fc.nat(3), (chunks, drain) => {
      const log = new KeptLog(limits)
      const all = Buffer.from(chunks.join(''))
      const taken: { from: number; to: number }[] = []
      const take = () => {
        const next = log.next()
        if (!next) return false
        const bytes = Buffer.from(next.text)
        const from = next.offset
        assert.equal(bytes, all.subarray(from, from + bytes.length))
        assert.ok(bytes.length <= limits.chunkBytes && from >= (taken.at(-1)?.to ?? 0))
        taken.push({ from, to: from + bytes.length })
        return true
      }
      const addedBytes = chunks.map((chunk, index) => {
        for (const byte of Buffer.from(chunk)) log.add(Buffer.from([byte]))
        if (index % (drain + 1) === 0) while (take());
        return Buffer.byteLength(chunk)
      })
      log.end()
      while (take());
      assert.is(log.printedBytes, all.length)
      const gaps = taken.map(({ from }, index) => ({ from: taken[index - 1]?.to ?? 0, to: from }))
      for (const gap of gaps) {
        if (gap.from === gap.to) continue
        assert.ok(gap.from >= limits.headBytes, 'the head is whole')
        assert.ok(gap.to <= all.length - limits.tailBytes, 'the tail is whole')
        assert.ok(Math.max(...addedBytes) * (drain + 1) > limits.tailBytes, 'it was taken in time')
      }
      assert.is(taken.at(-1)?.to ?? 0, all.length)
    }),
    { numRuns: 500 },
  )
})

test('after a gap a part begins with a line', () => {
  const log = new KeptLog({ headBytes: 10, tailBytes: 20, chunkBytes: 10 })
  log.add(Buffer.from(`0123456789${'abc\n'.repeat(30)}`))
  assert.is(log.next()?.text, '0123456789')
  const { offset = 0, text = '' } = log.next() ?? {}
  assert.match(text, /^abc\nabc?/)
  assert.is((offset - 10) % 4, 0)
})

test.run()
