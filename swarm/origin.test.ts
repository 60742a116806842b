import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { until } from '../hack/parts/process.ts'
import { assertRelease, Playground, sampleArtifact, within } from './fixture.ts'

const test = suite('origin')
const sample = sampleArtifact({ 'bin/x': 5_000_001, b: 3 }, 64 << 10)
const { pieceLengthBytes, pieceCount, sizeBytes } = sample.descriptor
const piece = (index: number) => sample.blob.subarray(index * pieceLengthBytes, (index + 1) * pieceLengthBytes)
const read = async (index: number, into: Uint8Array) => into.set(piece(index))

test('one machine reads the store once and the others get it from peers', async () => {
  await using playground = await Playground.create()
  const reads = new Map<number, number>()
  const origin = {
    read: async (index: number, into: Uint8Array) => {
      reads.set(index, (reads.get(index) ?? 0) + 1)
      await read(index, into)
    },
  }
  const nodes = await Promise.all([0, 1, 2].map(() => playground.node()))
  const swarms = await Promise.all(nodes.map((node, i) => playground.open(node, sample, { name: `m${i}` })))
  for (const swarm of swarms) swarm.addPeers(nodes.map((node) => ({ host: '127.0.0.1', port: node.port })))
  swarms[0]?.setOrigin(origin)
  await within(Promise.all(swarms.map((swarm) => swarm.done)), 'all done')
  assert.is(reads.size, pieceCount)
  assert.ok([...reads.values()].every((count) => count === 1))
  assert.is(swarms[0]?.stats().downloadedFromOriginBytes, sizeBytes)
  for (const swarm of swarms.slice(1)) {
    assert.is(swarm.stats().downloadedFromOriginBytes, 0)
    assert.is(swarm.stats().downloadedFromPeersBytes, sizeBytes)
  }
  await assertRelease(join(playground.dir, 'm2', 'release'), sample)
})

test('what peers have is not read from the store', async () => {
  await using playground = await Playground.create()
  const seed = await playground.seed(sample)
  let reads = 0
  const leech = await playground.open(await playground.node(), sample)
  leech.addPeers([seed.address])
  await until('connected', () => leech.stats().peers > 0)
  leech.setOrigin({
    read: async (index, into) => {
      reads++
      await read(index, into)
    },
  })
  await within(leech.done, 'done')
  assert.is(reads, 0)
})

test('a lease covers only its pieces, and withdrawing it aborts what is being read', async () => {
  await using playground = await Playground.create()
  const leech = await playground.open(await playground.node(), sample)
  leech.setOrigin({ read, allows: (index) => index < 10 })
  await until('ten pieces', () => leech.have().pieces === 10)
  let aborted = 0
  leech.setOrigin({
    read: (_index, _into, signal) =>
      new Promise((_resolve, reject) =>
        signal.addEventListener('abort', () => reject(new Error(`aborted ${++aborted}`))),
      ),
  })
  leech.setOrigin(undefined)
  await until('reads are aborted', () => aborted === 4)
  assert.is(leech.have().pieces, 10)
  assert.is(leech.missing().length, pieceCount - 10)
})

test('wrong bytes from the store, or none, are never kept, and it is tried again later', async () => {
  await using playground = await Playground.create()
  let reads = 0
  const leech = await playground.open(await playground.node(), sample)
  leech.setOrigin({
    read: async (index, into) => {
      reads++
      if (reads === 1) into.fill(0)
      else if (reads === 2) throw new Error('the store hung up')
      else await read(index, into)
    },
  })
  await within(leech.done, 'done')
  assert.ok(leech.stats().wastedBytes > 0)
})

test('a node carries several swarms, and refuses to open one twice', async () => {
  await using playground = await Playground.create()
  const samples = [1, 2, 3].map((i) => sampleArtifact({ f: i * 1_000_000 }, 32 << 10))
  const [first] = samples
  const giver = await playground.node()
  const taker = await playground.node()
  for (const each of samples) {
    const swarm = await playground.open(giver, each)
    swarm.setOrigin({ read: async (i, into) => into.set(each.blob.subarray(i * (32 << 10), (i + 1) * (32 << 10))) })
  }
  const swarms = await Promise.all(samples.map((each) => playground.open(taker, each)))
  for (const swarm of swarms) swarm.addPeers([{ host: '127.0.0.1', port: giver.port }])
  await within(Promise.all(swarms.map((swarm) => swarm.done)), 'all done')
  if (!first) throw new Error('unreachable')
  const error: unknown = await playground.open(taker, first).catch((reason: unknown) => reason)
  assert.is((error as { code?: string }).code, 'Conflict')
  await swarms[0]?.[Symbol.asyncDispose]()
  await playground.open(taker, first)
})

test.run()
