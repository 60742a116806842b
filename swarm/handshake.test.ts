import { randomBytes } from 'node:crypto'
import { connect } from 'node:net'
import { setTimeout as delay } from 'node:timers/promises'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { until } from '../hack/parts/process.ts'
import { encodeGreeting } from './extension.ts'
import { Playground, sampleArtifact, within } from './fixture.ts'
import { RawListener, RawPeer } from './rawPeer.ts'
import { encodeHandshake, encodeMessage, messageId } from './wire.ts'

const test = suite('handshake')
const one = sampleArtifact({ f: 1_000_001 }, 64 << 10)
const other = sampleArtifact({ f: 700_000 }, 64 << 10)

test('who answers a dial with another swarm of ours is in neither', async () => {
  await using playground = await Playground.create()
  await using confused = await RawListener.listen({ infoHash: other.descriptor.infoHash })
  const node = await playground.node()
  const [first, second] = [await playground.open(node, one), await playground.open(node, other)]
  first.addPeers([confused.address])
  await until('it is dropped', () => confused.peers.some(({ handshake, closed }) => handshake && closed))
  assert.equal([first.stats().peers, second.stats().peers], [0, 0])
})

test('what is said in one swarm counts in no other of the same node', async () => {
  await using playground = await Playground.create()
  const { node, swarm } = await playground.seed(one)
  const empty = await playground.open(node, other)
  const peer = RawPeer.dial({ host: '127.0.0.1', port: node.port }, { infoHash: other.descriptor.infoHash })
  await until('it is in the empty one', () => empty.stats().peers === 1)
  peer.send(messageId.interested)
  await until('it is unchoked', () => peer.messages.some(({ id }) => id === messageId.unchoke))
  const request = Buffer.alloc(12)
  request.writeUInt32BE(16_384, 8)
  peer.send(messageId.request, request)
  await until('it is refused', () => peer.messages.some(({ id }) => id === messageId.reject))
  assert.equal([swarm.stats().peers, swarm.stats().uploadedBytes], [0, 0])
})

test('a handshake that comes byte by byte is cut off in time, as is one half said; the swarm goes on', async () => {
  await using playground = await Playground.create()
  const seed = await playground.seed(one, { key: Buffer.from('key') })
  const handshake = encodeHandshake(one.descriptor.infoHash, randomBytes(20))
  const greeting = encodeMessage(
    messageId.extended,
    encodeGreeting({ listenPort: 1, blockBytes: 1 << 14, maxRequests: 1, spreads: false, nonce: randomBytes(32) }),
  )
  // it would say all of it in 20 s; the other one never proves the key
  const slow = connect(seed.address.port, '127.0.0.1').on('error', () => {})
  const half = connect(seed.address.port, '127.0.0.1').on('error', () => {})
  half.resume().write(Buffer.concat([handshake, greeting]))
  slow.resume()
  const saying = (async () => {
    for (const byte of handshake) {
      if (slow.closed) return
      slow.write(Buffer.from([byte]))
      await delay(300)
    }
  })()
  const leech = await playground.open(await playground.node(), one, { key: Buffer.from('key') })
  leech.addPeers([seed.address])
  await within(leech.done, 'an honest peer is served meanwhile')
  await until('both are cut off', () => slow.closed && half.closed, { timeoutMs: 10_000 })
  await saying
})

test.run()
