import { open, truncate } from 'node:fs/promises'
import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { BlockReader } from './blockReader.ts'
import { PieceBuffers, PieceCache } from './buffers.ts'
import { Playground, sampleArtifact, writeRelease } from './fixture.ts'
import { Hasher } from './hasher.ts'
import { PieceStore } from './store.ts'
import type { Wanted } from './uploader.ts'

const test = suite('blockReader')
const MIB = 1 << 20
const PIECE_BYTES = 4 * MIB
const BLOCK_BYTES = 128 << 10
const sample = sampleArtifact({ a: 3_000_001, b: 9_000_000 }, PIECE_BYTES)

interface Reading {
  /** What was asked for, or undefined when the piece turned out damaged. */
  read(pieceIndex: number, begin: number, sizeBytes?: number): Promise<Buffer | undefined>
  /** How much the disk was asked for, each time. */
  reads: number[]
  store: PieceStore
  dir: string
}

/** Blocks of a release that is complete on disk; `trusted`: by the word of a state file, not yet looked at. */
async function withReader(o: { trusted: boolean }, run: (reading: Reading) => Promise<unknown>): Promise<void> {
  await using playground = await Playground.create()
  await using hasher = new Hasher(1)
  const buffers = new PieceBuffers(64 * MIB)
  const dir = join(playground.dir, 'release')
  await writeRelease(dir, sample)
  const options = {
    ...({ torrent: sample.descriptor, dir, mode: 'seed', hasher, buffers } as const),
    stateFile: join(playground.dir, 'state'),
  }
  // the first looks at everything, and records it
  if (o.trusted) await (await PieceStore.open(options))[Symbol.asyncDispose]()
  await using store = await PieceStore.open(options)
  const reads: number[] = []
  const readPart = store.readPart.bind(store)
  store.readPart = (index, begin, sizeBytes) => {
    reads.push(sizeBytes)
    return readPart(index, begin, sizeBytes)
  }
  const reader = new BlockReader({ torrent: sample.descriptor, cache: new PieceCache(buffers, 8 * MIB), store })
  await run({
    reads,
    store,
    dir,
    async read(pieceIndex, begin, sizeBytes = BLOCK_BYTES) {
      const block: Wanted = { pieceIndex, begin, sizeBytes }
      const loaded = await reader.read(block)
      if (!loaded) return undefined
      const bytes = Buffer.from(loaded.buffer.bytes.subarray(loaded.at, loaded.at + sizeBytes))
      buffers.release(loaded.buffer)
      return bytes
    },
  })
}

const expected = (pieceIndex: number, begin: number, sizeBytes = BLOCK_BYTES) =>
  sample.blob.subarray(pieceIndex * PIECE_BYTES + begin, pieceIndex * PIECE_BYTES + begin + sizeBytes)

test('a piece nobody looked at is read whole, and verified, once', () =>
  withReader({ trusted: true }, async ({ read, reads }) => {
    assert.equal(await read(0, BLOCK_BYTES), expected(0, BLOCK_BYTES))
    assert.equal(await read(0, 3 * MIB), expected(0, 3 * MIB))
    assert.equal(reads, [PIECE_BYTES])
  }))

test('of a piece that was verified before, a part is read once for all its blocks', () =>
  withReader({ trusted: false }, async ({ read, reads }) => {
    const begins = [MIB, MIB + BLOCK_BYTES, 2 * MIB - BLOCK_BYTES]
    const blocks = await Promise.all(begins.map((begin) => read(0, begin)))
    assert.equal(
      blocks,
      begins.map((begin) => expected(0, begin)),
    )
    assert.equal(await read(0, MIB + 1000, 16_384), expected(0, MIB + 1000, 16_384))
    assert.equal(reads, [MIB])
  }))

test('a block across two parts is read for itself, and the last part is as short as it is', () =>
  withReader({ trusted: false }, async ({ read, reads }) => {
    assert.equal(await read(0, MIB - 1000), expected(0, MIB - 1000))
    const last = sample.descriptor.pieceCount - 1
    const sizeBytes = sample.blob.length - last * PIECE_BYTES
    const begin = sizeBytes - 1000
    assert.equal(await read(last, begin, 1000), expected(last, begin, 1000))
    assert.equal(reads, [BLOCK_BYTES, sizeBytes % MIB])
  }))

test('a piece that rotted since the state file was written is not sent, and no longer counted', () =>
  withReader({ trusted: true }, async ({ read, store, dir }) => {
    const file = await open(join(dir, 'b'), 'r+')
    await file.write(Buffer.alloc(100), 0, 100, 2 * PIECE_BYTES - 3_000_001)
    await file.close()
    assert.is(await read(2, 0), undefined)
    assert.not(store.pieces.has(2))
    assert.equal(await read(1, 0), expected(1, 0))
    assert.ok(store.pieces.has(1))
  }))

test('a piece whose file was cut is no longer counted', () =>
  withReader({ trusted: false }, async ({ read, store, dir }) => {
    await truncate(join(dir, 'b'), 1000)
    assert.is(await read(2, 0), undefined)
    assert.not(store.pieces.has(2))
    assert.equal(await read(0, 0), expected(0, 0))
  }))

test.run()
