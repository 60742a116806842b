/**
 * The extension handshake (BEP 10) and, in a swarm with a key, the proof that both ends hold it. Each side sends a
 * nonce in its handshake; each then sends an HMAC over both nonces, both peer ids, the infohash and its own role, so
 * a proof can neither be replayed nor reflected. It shows membership; the bytes are checked by SHA-256 in any case.
 */
import { createHmac, timingSafeEqual } from 'node:crypto'
import { type Bencoded, decodeBencode, encodeBencode } from '../api/bencode.ts'

export const NONCE_BYTES = 32
/** The numbers under which we want to be sent proofs, and pieces that were begun (BEP 10's `m`). */
const PROOF_MESSAGE = 1
export const BEGUN_MESSAGE = 2

export interface Greeting {
  /** Where the sender listens, if it says. */
  listenPort?: number
  /** The largest block it serves and takes; agents say more than BEP 3's 16 KiB. */
  blockBytes: number
  /** How many requests it holds. */
  maxRequests: number
  nonce?: Uint8Array
  /** Under which number it wants the proof; undefined: it knows none. */
  proofMessage?: number
  /** It has everything, and says so piece by piece. */
  spreads?: boolean
  /** Where it is, if it says. */
  zone?: string
  /** Under which number it wants to hear of pieces that we have begun; undefined: it would not understand. */
  begunMessage?: number
}

export function encodeGreeting(greeting: {
  listenPort: number
  blockBytes: number
  maxRequests: number
  nonce?: Uint8Array
  spreads: boolean
  zone?: string | undefined
}): Buffer {
  const dictionary = new Map<string, Bencoded>([
    [
      'm',
      new Map<string, Bencoded>([
        ['shoal_begun', BEGUN_MESSAGE],
        ...(greeting.nonce ? [['shoal_proof', PROOF_MESSAGE] as const] : []),
      ]),
    ],
    ['p', greeting.listenPort],
    ['reqq', greeting.maxRequests],
    ['shoal_block', greeting.blockBytes],
    ['v', Buffer.from('Shoal')],
    ...(greeting.spreads ? [['shoal_spreads', 1] as const] : []),
    ...(greeting.zone === undefined ? [] : [['shoal_zone', Buffer.from(greeting.zone)] as const]),
  ])
  if (greeting.nonce) dictionary.set('shoal_nonce', greeting.nonce)
  return Buffer.concat([Buffer.from([0]), encodeBencode(dictionary)])
}

/** @returns undefined for anything that is not a dictionary; what is missing or absurd in it is left out. */
export function parseGreeting(payload: Uint8Array, standardBlockBytes: number): Greeting | undefined {
  let root: Bencoded
  try {
    root = decodeBencode(payload)
  } catch {
    return undefined
  }
  if (!(root instanceof Map)) return undefined
  const number = (value: Bencoded | undefined, min: number, max: number): number | undefined =>
    typeof value === 'number' && value >= min && value <= max ? value : undefined
  const greeting: Greeting = {
    blockBytes: number(root.get('shoal_block'), standardBlockBytes, 1 << 24) ?? standardBlockBytes,
    maxRequests: number(root.get('reqq'), 1, 100_000) ?? 64,
  }
  const listenPort = number(root.get('p'), 1, 65535)
  if (listenPort !== undefined) greeting.listenPort = listenPort
  if (root.get('shoal_spreads') === 1) greeting.spreads = true
  const zone = root.get('shoal_zone')
  if (zone instanceof Uint8Array) greeting.zone = Buffer.from(zone).toString()
  const nonce = root.get('shoal_nonce')
  if (nonce instanceof Uint8Array && nonce.length === NONCE_BYTES) greeting.nonce = Uint8Array.from(nonce)
  const messages = root.get('m')
  if (!(messages instanceof Map)) return greeting
  const proofMessage = number(messages.get('shoal_proof'), 1, 255)
  if (proofMessage !== undefined) greeting.proofMessage = proofMessage
  const begunMessage = number(messages.get('shoal_begun'), 1, 255)
  if (begunMessage !== undefined) greeting.begunMessage = begunMessage
  return greeting
}

interface End {
  nonce: Uint8Array
  peerId: Uint8Array
}

/** The proof of the end that dialled, or of the one that accepted. */
export function keyProof(
  key: Uint8Array,
  role: 'dialler' | 'acceptor',
  session: { infoHash: string; dialler: End; acceptor: End },
): Buffer {
  return createHmac('sha256', key)
    .update(`shoal swarm proof 1 ${role} ${session.infoHash}`)
    .update(session.dialler.nonce)
    .update(session.acceptor.nonce)
    .update(session.dialler.peerId)
    .update(session.acceptor.peerId)
    .digest()
}

export function sameProof(expected: Uint8Array, given: Uint8Array): boolean {
  return expected.length === given.length && timingSafeEqual(expected, given)
}
