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

test('head and tail are kept, with a mark of what is left out, at offsets that fit', () => {
  const limits = { headBytes: 40, tailBytes: 20, chunkBytes: 7 }
  fc.assert(
    fc.property(chunked('abé€'), fc.nat(3), (chunks, drain) => {
      const log = new KeptLog(limits)
      const bytes = chunks.map((chunk) => Buffer.from(chunk))
      let kept = ''
      const take = () => {
        const next = log.next()
        if (next) assert.is(next.offset, Buffer.byteLength(kept))
        kept += next?.text ?? ''
        return next
      }
      bytes.forEach((chunk, index) => {
        log.add(chunk)
        if (index % (drain + 1) === 0) take()
      })
      log.end()
      while (take());
      const all = Buffer.concat(bytes)
      const { headBytes, tailBytes } = limits
      const leftOut = all.length - headBytes - tailBytes
      const wanted =
        leftOut <= 0
          ? [all]
          : [all.subarray(0, headBytes), Buffer.from(`\n… ${leftOut} bytes left out …\n`), all.subarray(-tailBytes)]
      assert.is(kept, Buffer.concat(wanted).toString())
    }),
    { numRuns: 300 },
  )
})

test.run()
