import { randomBytes } from 'node:crypto'
import type { Socket } from 'node:net'
import type { Address } from './addresses.ts'
import { Bitfield } from './bitfield.ts'
import type { Clock } from './clock.ts'
import {
  BEGUN_MESSAGE,
  encodeGreeting,
  type Greeting,
  keyProof,
  NONCE_BYTES,
  parseGreeting,
  sameProof,
} from './extension.ts'
import { Speed } from './rate.ts'
import { type Request, STANDARD_BLOCK_BYTES } from './request.ts'
import { encodeHandshake, encodeMessage, type Handshake, keepAlive, messageId, WireDecoder, WireError } from './wire.ts'

/** Between agents: fewer messages, the same bytes. */
export const AGENT_BLOCK_BYTES = 512 << 10
export const MAX_REQUESTS = 512
const HANDSHAKE_TIMEOUT_MS = 5000
const KEEP_ALIVE_MS = 60_000
const SILENCE_MS = 120_000
/** A peer that does not read what we send it. */
const MAX_UNSENT_BYTES = 8 << 20

/** What a connection stands on: its swarm. */
export interface PeerHost {
  readonly infoHash: string
  readonly peerId: Uint8Array
  readonly key: Uint8Array | undefined
  readonly pieceCount: number
  readonly listenPort: number
  /** We have everything, and say so piece by piece. */
  readonly spreads: boolean
  /** Where we are, if anyone said. */
  readonly zone: string | undefined
  /** It proved what it had to. @returns false to refuse it. */
  joined(peer: Peer): boolean
  /** It joined, and said what it understands. */
  greeted(peer: Peer): void
  /** A message of the piece protocol, after `joined`. @throws WireError on nonsense. */
  message(peer: Peer, id: number, payload: Buffer): void
  /** It has begun a piece. @throws WireError on nonsense. */
  begun(peer: Peer, pieceIndex: number, hops: number): void
  blockTarget(peer: Peer, pieceIndex: number, begin: number, sizeBytes: number): Uint8Array | undefined
  blockEnd(peer: Peer, pieceIndex: number, begin: number, sizeBytes: number, kept: boolean): void
  left(peer: Peer): void
}

interface PeerOptions {
  socket: Socket
  dialled: boolean
  address: Address
  clock: Clock
  /** The swarm for an infohash, if this connection may join it. */
  resolve(infoHash: string): PeerHost | undefined
  /** Called once, when the connection is over, joined or not. */
  onClose(peer: Peer, reason: string): void
}

/**
 * One connection: connecting → handshake → (with a key: proof) → joined → closed. Before `joined` nothing but the
 * extension handshake and the proof is read, within 5 s and 4 KiB a message.
 */
export class Peer {
  readonly socket: Socket
  readonly dialled: boolean
  /** Where it listens, as far as we know. */
  address: Address
  id = ''
  has = new Bitfield(0)
  /** Pieces it is receiving and passes on as they come, and over how many hops they come to it. */
  readonly begun = new Map<number, number>()
  joined = false
  closed = false
  fast = false
  blockBytes = STANDARD_BLOCK_BYTES
  maxRequests = 64

  amInterested = false
  peerChoking = true
  interested = false
  unchokedSinceMs: number | undefined
  waitingSinceMs = 0
  /** It is in our zone, or one of us does not say where it is. Settled before it joins. */
  near = true
  /** The picker's version when it offered nothing to begin; undefined: it may. */
  nothingAt: number | undefined
  /** What it offers since. */
  readonly news: number[] = []
  /** Pieces it offers and we lack. */
  wanted = 0
  /** By `requestKey`. */
  readonly requests = new Map<number, Request>()
  requestedBytes = 0
  /** From a request to the end of its block, lately. */
  tookMs = 0
  /** What may be asked of it at once: grows while it answers promptly. */
  windowBytes = 0
  /** The request whose block is arriving. */
  receiving: Request | undefined
  /** Bytes we did not ask for, or no longer wanted. */
  wastedBytes = 0
  readonly received: Speed
  receivedBytes = 0
  lastBlockMs: number
  snubbed = false

  readonly #o: PeerOptions
  readonly #decoder: WireDecoder
  readonly #connectedMs: number
  readonly #nonce = Uint8Array.from(randomBytes(NONCE_BYTES))
  #host: PeerHost | undefined
  #remoteId: Uint8Array = new Uint8Array(20)
  #greeting: Greeting | undefined
  #lastReadMs: number
  #lastWriteMs: number
  readonly #unsent: Uint8Array[] = []

  constructor(o: PeerOptions) {
    this.#o = o
    this.socket = o.socket
    this.dialled = o.dialled
    this.address = o.address
    const nowMs = o.clock.nowMs()
    this.#connectedMs = this.#lastReadMs = this.#lastWriteMs = this.lastBlockMs = nowMs
    this.received = new Speed(nowMs)
    this.#decoder = new WireDecoder({
      handshake: (handshake) => this.#onHandshake(handshake),
      message: (id, payload) => this.#onMessage(id, payload),
      blockTarget: (index, begin, size) => this.#host?.blockTarget(this, index, begin, size),
      blockEnd: (index, begin, size, kept) => this.#host?.blockEnd(this, index, begin, size, kept),
    })
    o.socket.setNoDelay(true)
    o.socket.on('close', () => this.close('closed by the other end'))
    o.socket.on('error', (error) => this.close(error.message))
  }

  /** The dialling end speaks first, once connected. */
  greet(host: PeerHost): void {
    this.write(encodeHandshake(host.infoHash, host.peerId))
  }

  /** Bytes from the socket. */
  read(chunk: Buffer): void {
    if (this.closed) return
    this.#lastReadMs = this.#o.clock.nowMs()
    try {
      this.#decoder.push(chunk)
    } catch (error) {
      if (!(error instanceof WireError)) throw error
      this.close(error.message)
    }
  }

  /** Goes with all that is said in this turn of the event loop: 24 machines say a thousand things a second each. */
  write(bytes: Uint8Array): void {
    if (this.closed) return
    if (this.#unsent.push(bytes) === 1) setImmediate(() => this.flush())
  }

  /** Sends at once what was said. */
  flush(): void {
    const [first] = this.#unsent
    if (!first || this.closed) return
    this.#lastWriteMs = this.#o.clock.nowMs()
    this.socket.write(this.#unsent.length === 1 ? first : Buffer.concat(this.#unsent))
    this.#unsent.length = 0
    if (this.socket.writableLength > MAX_UNSENT_BYTES) this.close('does not read')
  }

  /** The block it is sending goes nowhere from now on. */
  discardBlock(): void {
    this.#decoder.discardBlock()
  }

  /** It is one of us. */
  get isAgent(): boolean {
    return this.#greeting?.begunMessage !== undefined
  }

  /** It has more than it says, and will say so. */
  get spreads(): boolean {
    return this.#greeting?.spreads === true && !this.has.full
  }

  /** Whether to ask it for this piece. */
  offers(pieceIndex: number): boolean {
    return this.has.has(pieceIndex) || this.begun.has(pieceIndex)
  }

  /** We have begun a piece, which it may ask for. Nothing is sent to those who would not understand. */
  tellBegun(pieceIndex: number, hops: number): void {
    const id = this.#greeting?.begunMessage
    if (id === undefined) return
    const payload = Buffer.allocUnsafe(6)
    payload[0] = id
    payload.writeUInt32BE(pieceIndex, 1)
    payload[5] = hops
    this.write(encodeMessage(messageId.extended, payload))
  }

  /** Time passed. */
  tick(nowMs: number): void {
    this.received.tick(nowMs)
    if (!this.joined && nowMs - this.#connectedMs > HANDSHAKE_TIMEOUT_MS) this.close('handshake timeout')
    else if (nowMs - this.#lastReadMs > SILENCE_MS) this.close('silent')
    else if (this.joined && nowMs - this.#lastWriteMs > KEEP_ALIVE_MS) this.write(keepAlive)
  }

  close(reason: string): void {
    if (this.closed) return
    this.closed = true
    this.#decoder.discardBlock()
    this.socket.destroy()
    if (this.joined) this.#host?.left(this)
    this.#o.onClose(this, reason)
  }

  #onHandshake(handshake: Handshake): void {
    const host = this.#o.resolve(handshake.infoHash)
    if (!host) throw new WireError('a swarm we are not in')
    if (host.key && !handshake.extended) throw new WireError('cannot prove the key')
    this.#host = host
    this.#remoteId = handshake.peerId
    this.id = Buffer.from(handshake.peerId).toString('hex')
    this.fast = handshake.fast
    if (!this.dialled) this.greet(host)
    // BEP 3 wants the bitfield first, so where nothing is to be proved we join at once
    if (!host.key) this.#join()
    if (handshake.extended && !this.closed) {
      const greeting = encodeGreeting({
        listenPort: host.listenPort,
        blockBytes: AGENT_BLOCK_BYTES,
        maxRequests: MAX_REQUESTS,
        spreads: host.spreads,
        zone: host.zone,
        ...(host.key ? { nonce: this.#nonce } : {}),
      })
      this.write(encodeMessage(messageId.extended, greeting))
    }
  }

  #onMessage(id: number, payload: Buffer): void {
    const host = this.#host
    if (!host || this.closed) return
    if (id === messageId.extended) this.#onExtended(host, payload)
    else if (this.joined) host.message(this, id, payload)
    else throw new WireError('spoke before it proved the key')
  }

  #onExtended(host: PeerHost, payload: Buffer): void {
    if (payload[0] !== 0) {
      // the number is ours (BEP 10)
      if (payload[0] === BEGUN_MESSAGE) {
        if (!this.joined || payload.length !== 6) throw new WireError('a malformed begun')
        host.begun(this, payload.readUInt32BE(1), payload.readUInt8(5))
      } else if (host.key && !this.joined) this.#checkProof(host, host.key, payload.subarray(1))
      return
    }
    if (this.#greeting && !this.joined) throw new WireError('greeted twice')
    const greeting = parseGreeting(payload.subarray(1), STANDARD_BLOCK_BYTES)
    if (!greeting) throw new WireError('a malformed extension handshake')
    this.#greeting = greeting
    if (!this.joined && greeting.zone !== undefined && host.zone !== undefined) this.near = greeting.zone === host.zone
    this.blockBytes = Math.min(greeting.blockBytes, AGENT_BLOCK_BYTES)
    this.maxRequests = Math.min(greeting.maxRequests, MAX_REQUESTS)
    if (!this.dialled && greeting.listenPort) this.address = { host: this.address.host, port: greeting.listenPort }
    if (this.joined) host.greeted(this)
    if (!host.key || this.joined) return
    if (!greeting.nonce || greeting.proofMessage === undefined) throw new WireError('cannot prove the key')
    const proof = keyProof(host.key, this.dialled ? 'dialler' : 'acceptor', this.#session(host, greeting.nonce))
    this.write(encodeMessage(messageId.extended, Buffer.concat([Buffer.from([greeting.proofMessage]), proof])))
  }

  #checkProof(host: PeerHost, key: Uint8Array, proof: Buffer): void {
    if (!this.#greeting?.nonce) throw new WireError('proved before it greeted')
    const expected = keyProof(key, this.dialled ? 'acceptor' : 'dialler', this.#session(host, this.#greeting.nonce))
    if (!sameProof(expected, proof)) throw new WireError('wrong key')
    this.#join()
  }

  #session(host: PeerHost, nonce: Uint8Array): Parameters<typeof keyProof>[2] {
    const own = { nonce: this.#nonce, peerId: host.peerId }
    const other = { nonce, peerId: this.#remoteId }
    return { infoHash: host.infoHash, dialler: this.dialled ? own : other, acceptor: this.dialled ? other : own }
  }

  #join(): void {
    const host = this.#host
    if (!host) return
    this.has = new Bitfield(host.pieceCount)
    this.waitingSinceMs = this.lastBlockMs = this.#o.clock.nowMs()
    this.#decoder.maxMessageBytes = Math.max(4096, 64 + Math.ceil(host.pieceCount / 8))
    this.#decoder.maxBlockBytes = AGENT_BLOCK_BYTES
    this.joined = true
    if (host.joined(this)) {
      if (this.#greeting) host.greeted(this)
      return
    }
    this.joined = false
    throw new WireError('refused')
  }
}
