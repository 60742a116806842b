import { randomBytes } from 'node:crypto'
import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { assertRelease, Playground, sampleArtifact, until, within } from './fixture.ts'
import { RawListener, type RawPeer, type RawRequest } from './rawPeer.ts'
import { messageId } from './wire.ts'

const test = suite('passing on')
const sample = sampleArtifact({ f: 1 << 20 }, 1 << 20)
const { infoHash } = sample.descriptor
const truth = ({ begin, sizeBytes }: RawRequest) => sample.blob.subarray(begin, begin + sizeBytes)
const offer = (peer: RawPeer) => {
  peer.send(messageId.bitfield, Buffer.from([0x80]))
  peer.send(messageId.unchoke)
}

/** A machine beside a source, and one that knows only that machine. */
async function chain(playground: Playground, source: RawListener) {
  const node = await playground.node()
  const near = await playground.open(node, sample, { name: 'near' })
  const far = await playground.open(await playground.node(), sample, { name: 'far' })
  far.addPeers([{ host: '127.0.0.1', port: node.port }])
  await until(() => near.stats().peers === 1, 'the two are connected')
  near.addPeers([source.address])
  return { near, far }
}

test('a piece is passed on block by block before it is whole, and again from another source when the first dies', async () => {
  await using playground = await Playground.create()
  let blocks = 0
  await using source = await RawListener.listen({
    infoHash,
    onJoin: offer,
    onRequest: (peer, request) => {
      if (++blocks <= 12) peer.sendBlock(request, truth(request))
    },
  })
  const { near, far } = await chain(playground, source)
  await until(() => far.stats().downloadedFromPeersBytes >= 128 << 10, 'the far one has blocks')
  assert.is(near.have().pieces, 0)
  for (const peer of source.peers) peer.socket.destroy()
  const seed = await playground.seed(sample)
  near.addPeers([seed.address])
  await within(far.done, 'the far one is done')
  await assertRelease(join(playground.dir, 'far', 'release'), sample)
})

test('a piece is passed on over three machines as it comes, and no further', async () => {
  await using playground = await Playground.create()
  await using source = await RawListener.listen({
    infoHash,
    onJoin: offer,
    onRequest: (peer, request) => {
      if (request.begin < 512 << 10) peer.sendBlock(request, truth(request))
    },
  })
  const nodes = await Promise.all(Array.from({ length: 5 }, () => playground.node()))
  const swarms = await Promise.all(nodes.map((node, i) => playground.open(node, sample, { name: `m${i}` })))
  for (const [i, swarm] of swarms.entries()) {
    const before = nodes[i - 1]
    if (before) swarm.addPeers([{ host: '127.0.0.1', port: before.port }])
  }
  await until(
    () => swarms.every((swarm, i) => swarm.stats().peers === (i % 4 === 0 ? 1 : 2)),
    'each knows its neighbours',
  )
  swarms[0]?.addPeers([source.address])
  const got = () => swarms.map((swarm) => swarm.stats().downloadedFromPeersBytes > 0)
  await until(() => got()[3] === true, 'the fourth has blocks')
  assert.equal(got(), [true, true, true, true, false])
  assert.is(swarms[0]?.have().pieces, 0)
  const seed = await playground.seed(sample)
  swarms[0]?.addPeers([seed.address])
  await within(Promise.all(swarms.map((swarm) => swarm.done)), 'all are done')
})

test('who passes on what was wrong is not banned for it; who sent it is', async () => {
  await using playground = await Playground.create()
  const lies = randomBytes(1 << 20)
  await using liar = await RawListener.listen({
    infoHash,
    onJoin: offer,
    onRequest: (peer, request) =>
      peer.sendBlock(request, lies.subarray(request.begin, request.begin + request.sizeBytes)),
  })
  const { near, far } = await chain(playground, liar)
  await until(() => near.stats().banned.length > 0, 'the liar is banned')
  await until(() => far.stats().wastedBytes > 0, 'the far one had it too')
  assert.equal(far.stats().banned, [])
  const seed = await playground.seed(sample)
  near.addPeers([seed.address])
  await within(far.done, 'the far one is done, by way of the near one')
  await assertRelease(join(playground.dir, 'far', 'release'), sample)
})

test.run()
