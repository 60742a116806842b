/** Wire streams, valid at first: cut anywhere they must give what a reader of the whole stream gives. */
import fc from 'fast-check'
import * as assert from 'uvu/assert'
import {
  encodeBlockHeader,
  encodeHandshake,
  encodeMessage,
  encodeNumbers,
  messageId,
  WireDecoder,
  WireError,
} from '../../swarm/wire.ts'
import { mutations } from './mutations.ts'

const MAX_MESSAGE_BYTES = 200
const MAX_BLOCK_BYTES = 500
const HANDSHAKE_BYTES = 68

const number = fc.oneof(fc.nat(20), fc.nat(0xffffffff))
const block = fc
  .tuple(number, number, fc.uint8Array({ minLength: 1, maxLength: MAX_BLOCK_BYTES }))
  .map(([index, begin, bytes]) => Buffer.concat([encodeBlockHeader(index, begin, bytes.length), bytes]))
const message = fc.oneof(
  fc
    .tuple(fc.nat(255), fc.uint8Array({ maxLength: MAX_MESSAGE_BYTES - 1 }))
    .map(([id, bytes]) => encodeMessage(id, bytes)),
  fc.tuple(number, number, number).map((numbers) => encodeNumbers(messageId.request, ...numbers)),
  fc.constant(Buffer.alloc(4)),
  block,
)
const stream = fc
  .tuple(fc.uint8Array({ minLength: 20, maxLength: 20 }), fc.array(message, { maxLength: 8 }))
  .map(([peerId, messages]) => Buffer.concat([encodeHandshake('ab'.repeat(20), peerId), ...messages]))

type Event = [what: string, ...unknown[]]

/** Decodes in chunks of these sizes, again and again; what is left over comes as one. */
function decode(bytes: Buffer, chunkBytes: number[]): Event[] {
  const events: Event[] = []
  let target = Buffer.alloc(0)
  const decoder = new WireDecoder({
    handshake: ({ infoHash, peerId }) => events.push(['handshake', infoHash, Buffer.from(peerId).toString('hex')]),
    message: (id, payload) => events.push(['message', id, payload.toString('hex')]),
    blockTarget: (_index, _begin, sizeBytes) => {
      assert.ok(sizeBytes <= MAX_BLOCK_BYTES)
      target = Buffer.alloc(sizeBytes)
      return target
    },
    blockEnd: (index, begin, _sizeBytes, kept) => events.push(['block', index, begin, kept, target.toString('hex')]),
  })
  decoder.maxMessageBytes = MAX_MESSAGE_BYTES
  decoder.maxBlockBytes = MAX_BLOCK_BYTES
  try {
    for (let at = 0, i = 0; at < bytes.length; i++) {
      const size = chunkBytes.length > 0 ? (chunkBytes[i % chunkBytes.length] ?? 1) : bytes.length
      // as a socket's buffer: used again for the next chunk
      const chunk = Buffer.from(bytes.subarray(at, at + size))
      decoder.push(chunk)
      chunk.fill(0xee)
      at += size
    }
  } catch (error) {
    if (!(error instanceof WireError)) throw error
    events.push(['error'])
  }
  return events
}

/** The same by the book, from the whole stream at once. */
function byTheBook(bytes: Buffer): Event[] {
  const events: Event[] = []
  if (bytes.length < HANDSHAKE_BYTES) return events
  if (bytes.toString('latin1', 0, 20) !== '\x13BitTorrent protocol') return [['error']]
  events.push(['handshake', bytes.toString('hex', 28, 48), bytes.toString('hex', 48, 68)])
  for (let at = HANDSHAKE_BYTES; at + 4 <= bytes.length; ) {
    const size = bytes.readUInt32BE(at)
    const id = bytes[at + 4]
    if (size > MAX_BLOCK_BYTES + 9) return [...events, ['error']]
    if (size > 0 && id !== undefined) {
      const isBlock = id === messageId.piece
      if (isBlock ? size < 10 : size > MAX_MESSAGE_BYTES) return [...events, ['error']]
      if (at + 4 + size > bytes.length) return events
      const body = bytes.subarray(at + 5, at + 4 + size)
      if (isBlock) events.push(['block', body.readUInt32BE(0), body.readUInt32BE(4), true, body.toString('hex', 8)])
      else events.push(['message', id, body.toString('hex')])
    }
    at += 4 + size
  }
  return events
}

/** What the decoder hands on does not depend on how the bytes are cut, and is what the protocol says. */
export const wire = fc.property(
  fc.oneof(
    { weight: 9, arbitrary: stream },
    { weight: 1, arbitrary: fc.uint8Array({ maxLength: 200 }).map(Buffer.from) },
  ),
  mutations,
  fc.array(fc.integer({ min: 1, max: 100 }), { maxLength: 5 }),
  (valid, mutate, cuts) => {
    const bytes = mutate(valid)
    const expected = JSON.stringify(byTheBook(bytes))
    for (const chunks of [[], [1], cuts]) assert.is(JSON.stringify(decode(bytes, chunks)), expected)
  },
)
