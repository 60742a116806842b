import { randomBytes, randomFillSync } from 'node:crypto'
import { rm, truncate, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { Chunker } from '../artifacts/chunker.ts'
import { until } from '../hack/parts/process.ts'
import { assertRelease, Playground, type Sample, sampleOf, within, writeRelease } from './fixture.ts'
import { LocalChunks, type LocalRelease } from './localChunks.ts'
import { RawListener } from './rawPeer.ts'
import { messageId } from './wire.ts'

const test = suite('local releases')
const PIECE_BYTES = 64 << 10

/** Chunks of 4 KiB on average. */
function listChunks(contents: Buffer[]): Uint8Array {
  const chunker = new Chunker(4096)
  for (const content of contents) {
    chunker.update(content)
    chunker.endFile()
  }
  return chunker.finish()
}
const artifact = (files: Record<string, Buffer | string>) => sampleOf(files, PIECE_BYTES, listChunks)

async function onDisk(playground: Playground, sample: Sample, name = 'old'): Promise<LocalRelease> {
  const dir = join(playground.dir, name)
  await writeRelease(dir, sample)
  return { torrent: sample.descriptor, dir }
}

const big = randomBytes(2_000_000)
const small = randomBytes(3000)
const old = artifact({ 'bin/server': big, 'etc/a': small, 'etc/b': Buffer.alloc(0), link: 'etc/a' })

test('nothing of what the release on disk has is fetched: moved, renamed and empty files, links, other modes', async () => {
  await using playground = await Playground.create()
  const local = [await onDisk(playground, old)]
  const moved = artifact({ 'a/copy': small, 'a/server': big, empty: Buffer.alloc(0), link: 'a/copy', z: small })
  const leech = await playground.open(await playground.node(), moved, { name: 'leech', local })
  await within(leech.done, 'done without a peer')
  await assertRelease(join(playground.dir, 'leech', 'release'), moved)
  assert.is(leech.stats().takenFromLocalBytes, moved.blob.length)
  assert.is(leech.stats().downloadedFromPeersBytes, 0)
})

test('bytes put into a big file: only the blocks around them are fetched', async () => {
  await using playground = await Playground.create()
  const local = [await onDisk(playground, old)]
  const edited = Buffer.concat([big.subarray(0, 1_000_000), randomBytes(100), big.subarray(1_000_000)])
  const next = sampleOf({ 'bin/server': edited, 'etc/a': small }, 1 << 20, listChunks)
  const seed = await playground.seed(next)
  const leech = await playground.open(await playground.node(), next, { name: 'leech', local })
  leech.addPeers([seed.address])
  await within(leech.done, 'done')
  await assertRelease(join(playground.dir, 'leech', 'release'), next)
  const { takenFromLocalBytes, downloadedFromPeersBytes } = leech.stats()
  assert.is(takenFromLocalBytes + downloadedFromPeersBytes, next.blob.length)
  await using known = new LocalChunks(next.descriptor, local, () => undefined)
  assert.is(known.wholeBlocksBytes(), takenFromLocalBytes, 'known before')
  // chunks of up to 16 KiB, in units of as much
  assert.ok(downloadedFromPeersBytes > 0 && downloadedFromPeersBytes <= 6 * (16 << 10), `${downloadedFromPeersBytes}`)
})

test('pieces that are partly on disk, but wrong there, are fetched again, and nobody is blamed', async () => {
  await using playground = await Playground.create()
  const local = [await onDisk(playground, old)]
  await writeFile(join(local[0]?.dir ?? '', 'bin/server'), randomBytes(big.length))
  // every piece has something new
  const edited = Buffer.from(big)
  for (let at = 0; at < edited.length; at += PIECE_BYTES) randomFillSync(edited, at, 10)
  const next = artifact({ 'bin/server': edited })
  const seeds = [await playground.seed(next), await playground.seed(next)]
  const leech = await playground.open(await playground.node(), next, { name: 'leech', local })
  leech.addPeers(seeds.map(({ address }) => address))
  await within(leech.done, 'done')
  await assertRelease(join(playground.dir, 'leech', 'release'), next)
  const { takenFromLocalBytes, downloadedFromPeersBytes, wastedBytes, banned } = leech.stats()
  assert.is(takenFromLocalBytes, 0)
  assert.is(downloadedFromPeersBytes, next.blob.length)
  assert.ok(wastedBytes > 0, 'it was tried')
  assert.equal(banned, [])
})

test('a liar is found although the disk had part of its piece', async () => {
  await using playground = await Playground.create()
  const local = [await onDisk(playground, old)]
  const edited = Buffer.from(big)
  for (let at = 0; at < edited.length; at += PIECE_BYTES) randomFillSync(edited, at, 10)
  const next = artifact({ 'bin/server': edited })
  await using liar = await RawListener.listen({
    infoHash: next.descriptor.infoHash,
    onJoin: (peer) => {
      const bits = Buffer.alloc(Math.ceil(next.descriptor.pieceCount / 8))
      for (let i = 0; i < next.descriptor.pieceCount; i++) bits[i >> 3] = (bits[i >> 3] ?? 0) | (0x80 >> (i & 7))
      peer.send(messageId.bitfield, bits)
      peer.send(messageId.unchoke)
    },
    onRequest: (peer, request) => peer.sendBlock(request, randomBytes(request.sizeBytes)),
  })
  const leech = await playground.open(await playground.node(), next, { name: 'leech', local })
  leech.addPeers([liar.address])
  await until('the liar is banned', () => leech.stats().banned.length > 0)
  const seed = await playground.seed(next)
  leech.addPeers([seed.address])
  await within(leech.done, 'done')
  await assertRelease(join(playground.dir, 'leech', 'release'), next)
})

test('two releases are used together, and one without a list of chunks is left alone', async () => {
  await using playground = await Playground.create()
  const other = randomBytes(500_000)
  const plain = sampleOf({ f: randomBytes(100_000) }, PIECE_BYTES)
  const local = [
    await onDisk(playground, old, 'one'),
    await onDisk(playground, plain, 'plain'),
    await onDisk(playground, artifact({ other }), 'two'),
  ]
  const next = artifact({ 'bin/server': big, other })
  const leech = await playground.open(await playground.node(), next, { name: 'leech', local })
  await within(leech.done, 'done without a peer')
  await assertRelease(join(playground.dir, 'leech', 'release'), next)
})

test('what is damaged, cut short or gone on disk comes from peers, and nobody is blamed', async () => {
  await using playground = await Playground.create()
  const third = randomBytes(400_000)
  const before = artifact({ 'bin/server': big, gone: third, short: randomBytes(300_000) })
  const damages = {
    damaged: async (dir: string) => {
      const wrong = Buffer.from(big)
      wrong.fill(0, 500_000, 700_000)
      await writeFile(join(dir, 'bin/server'), wrong)
    },
    gone: (dir: string) => rm(join(dir, 'gone')),
    short: (dir: string) => truncate(join(dir, 'short'), 10),
    all: (dir: string) => rm(dir, { recursive: true }),
  }
  const seed = await playground.seed(before)
  for (const [name, damage] of Object.entries(damages)) {
    const release = await onDisk(playground, before, `old-${name}`)
    await damage(release.dir)
    const leech = await playground.open(await playground.node(), before, { name, local: [release] })
    leech.addPeers([seed.address])
    await within(leech.done, name)
    await assertRelease(join(playground.dir, name, 'release'), before)
    const { downloadedFromPeersBytes, banned } = leech.stats()
    assert.ok(downloadedFromPeersBytes > 0, name)
    assert.equal(banned, [], name)
  }
})

test.run()
