import { createHash, hash } from 'node:crypto'
import fc from 'fast-check'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { readChunks } from '../api/chunks.ts'
import { Chunker, chunkAverageBytes } from './chunker.ts'

const test = suite('chunker')
const AVERAGE = 4096

/** The same bytes for the same seed, with nothing regular in them. */
function noise(sizeBytes: number, seed: number): Buffer {
  const blocks = Array.from({ length: Math.ceil(sizeBytes / 64) }, (_, i) =>
    createHash('sha512').update(`${seed} ${i}`).digest(),
  )
  return Buffer.concat(blocks).subarray(0, sizeBytes)
}

function listOf(files: Buffer[], readBytes: () => number = () => 1 << 20): Uint8Array {
  const chunker = new Chunker(AVERAGE)
  for (const file of files) {
    for (let at = 0; at < file.length; ) {
      const end = Math.min(file.length, at + readBytes())
      chunker.update(file.subarray(at, end))
      at = end
    }
    chunker.endFile()
  }
  return chunker.finish()
}
const chunksOf = (...files: Buffer[]) => [...readChunks(listOf(files))]

test('the same bytes have the same chunks, however they are read', () => {
  const file = noise(200_000, 1)
  const whole = Buffer.from(listOf([file]))
  fc.assert(
    fc.property(fc.array(fc.integer({ min: 1, max: 9000 }), { minLength: 1, maxLength: 20 }), (sizes) => {
      let read = 0
      const list = listOf([file], () => sizes[read++ % sizes.length] ?? 1)
      assert.equal(Buffer.from(list), whole)
    }),
    { numRuns: 50 },
  )
})

test('chunks are the bytes between the cuts, within bounds, near the average, and end with their file', () => {
  const files = [noise(300_000, 2), Buffer.alloc(0), noise(10, 3), Buffer.alloc(100_000)]
  const blob = Buffer.concat(files)
  const ends = new Set<number>()
  let end = 0
  for (const file of files) {
    end += file.length
    ends.add(end)
  }
  const chunks = chunksOf(...files)
  for (const { offset, sizeBytes, key } of chunks) {
    const digest = hash('sha256', blob.subarray(offset, offset + sizeBytes), 'buffer').subarray(0, 8)
    assert.is(Buffer.from(key, 'latin1').subarray(4).toString('hex'), digest.toString('hex'))
    assert.ok(sizeBytes <= 4 * AVERAGE)
    assert.ok(sizeBytes > (3 * AVERAGE) / 4 || ends.has(offset + sizeBytes), 'only the end of a file is shorter')
    ends.delete(offset + sizeBytes)
  }
  assert.is(ends.size, 0, 'every file ends with a chunk')
  const count = chunksOf(noise(2_000_000, 4)).length
  assert.ok(count > 400 && count < 600, `2 MB in ${count} chunks`)
})

test('bytes put in, taken out or changed move the cuts around them only', () => {
  const before = noise(400_000, 5)
  const known = new Set(chunksOf(before).map(({ key }) => key))
  fc.assert(
    fc.property(fc.nat(before.length), fc.nat(2000), fc.nat(2000), (at, removed, added) => {
      const edited = Buffer.concat([before.subarray(0, at), noise(added, 6), before.subarray(at + removed)])
      const fresh = chunksOf(edited).filter(({ key }) => !known.has(key))
      const first = fresh[0]?.offset ?? at
      const end = fresh.at(-1)
      assert.ok(first >= at - 4 * AVERAGE, `changed from ${first} on`)
      // of 6,000 edits the last had the old cuts again after 10 averages, and 1.2 were lost in the mean
      assert.ok(!end || end.offset + end.sizeBytes <= at + added + 20 * AVERAGE, 'changed to far behind')
    }),
    { numRuns: 100 },
  )
})

test('the cuts are part of the format: they stay what they were', () => {
  const chunks = chunksOf(noise(30_000, 7))
  assert.equal(
    chunks.map(({ sizeBytes }) => sizeBytes),
    [3396, 3137, 4696, 4377, 3462, 3471, 5465, 1996],
  )
  const list = hash('sha256', listOf([noise(1_000_000, 8)]))
  assert.is(list, 'c5d47025452a9b1ec4e9d717f0de370697fe951c4a0da56fda3abd3f5e627d64')
})

test('the average is a power of two, and keeps the list short', () => {
  for (const [sizeBytes, average] of [
    [1, 64 << 10],
    [2 ** 32, 64 << 10],
    [2 ** 32 + 1, 128 << 10],
    [10e9, 256 << 10],
    [2 ** 42, 64 << 20],
  ] as const)
    assert.is(chunkAverageBytes(sizeBytes), average)
})

test.run()
