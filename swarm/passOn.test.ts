import { randomBytes } from 'node:crypto'
import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { until } from '../hack/parts/process.ts'
import { BEGUN_MESSAGE } from './extension.ts'
import { assertRelease, Playground, sampleArtifact, within } from './fixture.ts'
import { RawListener, type RawPeer, type RawRequest } from './rawPeer.ts'
import { SecondHand } from './secondHand.ts'
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
  await until('the two are connected', () => near.stats().peers === 1)
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
  await until('the far one has blocks', () => far.stats().downloadedFromPeersBytes >= 128 << 10)
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
  await until('each knows its neighbours', () =>
    swarms.every((swarm, i) => swarm.stats().peers === (i % 4 === 0 ? 1 : 2)),
  )
  swarms[0]?.addPeers([source.address])
  const got = () => swarms.map((swarm) => swarm.stats().downloadedFromPeersBytes > 0)
  await until('the fourth has blocks', () => got()[3] === true)
  assert.equal(got(), [true, true, true, true, false])
  assert.is(swarms[0]?.have().pieces, 0)
  const seed = await playground.seed(sample)
  swarms[0]?.addPeers([seed.address])
  await within(Promise.all(swarms.map((swarm) => swarm.done)), 'all are done')
})

test('who passes on what was wrong is not banned for it; who sent it is', async () => {
  await using playground = await Playground.create()
  const lies = randomBytes(1 << 20)
  const lie = (peer: RawPeer, request: RawRequest) =>
    peer.sendBlock(request, lies.subarray(request.begin, request.begin + request.sizeBytes))
  const last: [RawPeer, RawRequest][] = []
  await using liar = await RawListener.listen({
    infoHash,
    onJoin: offer,
    onRequest: (peer, request) => {
      if (request.begin + request.sizeBytes < lies.length) lie(peer, request)
      else last.push([peer, request])
    },
  })
  const { near, far } = await chain(playground, liar)
  // or the near one finds out before the far one has it whole
  await until('the far one lacks what its last request, of 32 KiB, is for', () =>
    last.some(([, { begin }]) => far.stats().downloadedFromPeersBytes >= begin - (32 << 10)),
  )
  for (const [peer, request] of last) lie(peer, request)
  await until('the liar is banned', () => near.stats().banned.length > 0)
  await until('the far one had it too', () => far.stats().wastedBytes > 0)
  assert.equal(far.stats().banned, [])
  const seed = await playground.seed(sample)
  near.addPeers([seed.address])
  await within(far.done, 'the far one is done, by way of the near one')
  await assertRelease(join(playground.dir, 'far', 'release'), sample)
})

test('who passes on wrong pieces again and again is asked for nothing more at second hand, though it comes back', async () => {
  await using playground = await Playground.create()
  const small = sampleArtifact({ f: 4 << 20 }, 64 << 10)
  const asked: [RawPeer, RawRequest][] = []
  await using liar = await RawListener.listen({
    infoHash: small.descriptor.infoHash,
    onJoin: (peer) => {
      peer.send(messageId.unchoke)
      for (let index = 0; index < small.descriptor.pieceCount; index++)
        peer.send(messageId.extended, Buffer.from([BEGUN_MESSAGE, 0, 0, 0, index, 1]))
    },
    onRequest: (peer, request) => asked.push([peer, request]),
  })
  const leech = await playground.open(await playground.node(), small, { name: 'leech' })
  leech.addPeers([liar.address])
  let sentBytes = 0
  const isBack = () => liar.peers.length > 1 && liar.peers.at(-1)?.handshake !== undefined
  await until('it was hung up on, and is back', () => {
    // a piece, and the next when that was found wrong
    if (leech.stats().wastedBytes < sentBytes || isBack()) return isBack()
    for (const [peer, request] of asked.splice(0, 4)) {
      sentBytes += request.sizeBytes
      peer.sendBlock(request, randomBytes(request.sizeBytes))
    }
    return false
  })
  asked.length = 0
  const seed = await playground.seed(small, { uploadBytesPerSecond: 8e6 })
  leech.addPeers([seed.address])
  await within(leech.done, 'done')
  await assertRelease(join(playground.dir, 'leech', 'release'), small)
  assert.ok(sentBytes <= 4 * (64 << 10), `${sentBytes} bytes, of which one piece may have been on its way`)
  assert.is(asked.length, 0, 'it is asked for nothing more')
  assert.equal(leech.stats().banned, [], 'it may have been wronged')
})

test('a host that passes on wrong pieces under ever new names is banned; one wronged three times is not', () => {
  const from = (host: string, id: string, port: number) => ({ id, address: { host, port } })
  const secondHand = new SecondHand()
  const one = from('10.0.0.1', 'one', 1)
  const sentences = Array.from({ length: 20 }, () => secondHand.wrong(one))
  assert.equal(
    sentences.filter((sentence) => sentence !== 'nothing'),
    ['refusal'],
  )
  assert.ok(secondHand.refuses(one))
  assert.ok(secondHand.refuses(from('10.0.0.1', 'renamed', 1)) && secondHand.refuses(from('10.0.0.2', 'one', 2)))
  assert.not(secondHand.refuses(from('10.0.0.1', 'another', 2)))
  const many = Array.from({ length: 20 }, (_, i) => from('10.0.0.3', `many${i >> 1}`, 1000 + (i >> 1)))
  assert.is(
    many.findIndex((peer) => secondHand.wrong(peer) === 'ban'),
    8,
  )
  const here = Array.from({ length: 20 }, (_, i) => from('127.0.0.1', `here${i}`, 1000 + i))
  assert.ok(here.every((peer) => secondHand.wrong(peer) === 'nothing'))
})

test.run()
