/** A download among peers that speak a valid handshake and then whatever comes to mind. */
import { randomBytes } from 'node:crypto'
import { join } from 'node:path'
import fc from 'fast-check'
import * as assert from 'uvu/assert'
import { encodeBencode } from '../../api/bencode.ts'
import { until } from '../../hack/parts/process.ts'
import { encodeGreeting } from '../../swarm/extension.ts'
import { assertRelease, Playground, sampleArtifact, within } from '../../swarm/fixture.ts'
import { RawListener, RawPeer, type RawRequest } from '../../swarm/rawPeer.ts'
import { encodeBlockHeader, encodeMessage, encodeNumbers, messageId } from '../../swarm/wire.ts'
import { bencoded, mutations } from './mutations.ts'

const sample = sampleArtifact({ 'bin/x': 2_000_001, y: 1_000_000 }, 64 << 10)
const { infoHash, pieceCount, pieceLengthBytes, sizeBytes } = sample.descriptor
/** So that it lasts a second, in the middle of which the others come. */
const SEED_BYTES_PER_SECOND = 3e6
/** What a swarm dials and what it accepts. */
const MAX_PEERS = 64

const index = fc.oneof({ weight: 9, arbitrary: fc.nat(pieceCount - 1) }, { weight: 1, arbitrary: fc.nat(0xffffffff) })
const begin = fc.oneof(
  fc.nat(3).map((unit) => unit * 16_384),
  fc.nat(0xffffffff),
)
const bytesAsked = fc.constantFrom(16_384, 32_768, 65_536, 1, 0, 131_073, 0xffffffff)
const bits = Buffer.alloc(Math.ceil(pieceCount / 8), 0xff)
bits[bits.length - 1] = (0xff << (bits.length * 8 - pieceCount)) & 0xff

const message: fc.Arbitrary<Buffer> = fc.oneof(
  fc.constantFrom(0, 1, 2, 3, messageId.haveAll, messageId.haveNone).map((id) => encodeMessage(id)),
  index.map((each) => encodeNumbers(messageId.have, each)),
  fc.constant(encodeMessage(messageId.bitfield, bits)),
  fc
    .tuple(fc.constantFrom(messageId.request, messageId.cancel, messageId.reject), index, begin, bytesAsked)
    .map(([id, ...numbers]) => encodeNumbers(id, ...numbers)),
  fc
    .tuple(index, begin, fc.constantFrom(1, 16_384, 65_536))
    .map(([each, from, size]) => Buffer.concat([encodeBlockHeader(each, from, size), Buffer.alloc(size)])),
  fc
    .tuple(fc.nat(3), bencoded)
    .map(([id, value]) => encodeMessage(messageId.extended, Buffer.concat([Buffer.from([id]), encodeBencode(value)]))),
  index.map((each) =>
    encodeMessage(messageId.extended, Buffer.concat([Buffer.from([2]), encodeNumbers(0, each).subarray(5)])),
  ),
  fc
    .boolean()
    .map((spreads) =>
      encodeMessage(
        messageId.extended,
        encodeGreeting({ listenPort: 9, blockBytes: 128 << 10, maxRequests: 512, spreads }),
      ),
    ),
)

/** What it answers when it is asked. */
const answers = {
  nothing: () => {},
  truth: (peer: RawPeer, request: RawRequest) => {
    const from = request.pieceIndex * pieceLengthBytes + request.begin
    peer.sendBlock(request, sample.blob.subarray(from, from + request.sizeBytes))
  },
  lies: (peer: RawPeer, request: RawRequest) => peer.sendBlock(request, randomBytes(request.sizeBytes)),
  shortened: (peer: RawPeer, request: RawRequest) => peer.sendBlock(request, Buffer.alloc(1)),
  rejects: (peer: RawPeer, request: RawRequest) =>
    peer.send(messageId.reject, encodeNumbers(0, request.pieceIndex, request.begin, request.sizeBytes).subarray(5)),
}
type AnswerName = keyof typeof answers

const script = fc.record({
  listens: fc.boolean(),
  answer: fc.constantFrom(...(Object.keys(answers) as AnswerName[])),
  says: fc.array(
    fc.tuple(message, fc.oneof({ weight: 4, arbitrary: fc.constant(undefined) }, { weight: 1, arbitrary: mutations })),
    { maxLength: 40 },
  ),
  ends: fc.constantFrom('stays', 'leaves', 'half open'),
})

/** The download ends with the right bytes, within the limits of connections, and who is honest is not banned. */
export const live = fc.asyncProperty(fc.array(script, { minLength: 20, maxLength: 40 }), async (scripts) => {
  await using playground = await Playground.create()
  const seed = await playground.seed(sample, { uploadBytesPerSecond: SEED_BYTES_PER_SECOND })
  const node = await playground.node()
  const leech = await playground.open(node, sample, { name: 'leech' })
  leech.addPeers([seed.address])
  await until('the download has begun', () => leech.have().pieces > 0)
  await using others = new AsyncDisposableStack()
  for (const { listens, answer, says, ends } of scripts) {
    const perform = async (peer: RawPeer) => {
      for (const [bytes, mutate] of says) {
        if (peer.closed) return
        peer.socket.write(mutate ? mutate(bytes) : bytes)
        await new Promise((resolve) => setTimeout(resolve, 5))
      }
      if (ends === 'leaves') peer.socket.destroy()
      if (ends === 'half open') peer.socket.end()
    }
    const behaviour = { infoHash, onJoin: (peer: RawPeer) => void perform(peer), onRequest: answers[answer] }
    if (listens) leech.addPeers([others.use(await RawListener.listen(behaviour)).address])
    else {
      const peer = RawPeer.dial({ host: '127.0.0.1', port: node.port }, behaviour)
      others.defer(() => void peer.socket.destroy())
    }
  }
  let mostPeers = 0
  const watch = setInterval(() => {
    mostPeers = Math.max(mostPeers, leech.stats().peers)
  }, 10)
  others.defer(() => clearInterval(watch))
  await within(leech.done, 'the download ends')
  await assertRelease(join(playground.dir, 'leech', 'release'), sample)
  const { banned, wastedBytes } = leech.stats()
  assert.not.ok(banned.includes(`127.0.0.1:${seed.address.port}`), 'the honest one is not banned')
  assert.ok(mostPeers <= MAX_PEERS, `${mostPeers} peers`)
  // each may say a few blocks nobody asked for, and spoil a few pieces before it is found
  assert.ok(wastedBytes <= 2 * sizeBytes + scripts.length * (3 << 20), `${wastedBytes} bytes wasted`)
})
