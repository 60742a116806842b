/**
 * The BitTorrent wire: framing of BEP 3, with the messages of BEP 6 (fast) and BEP 10 (extended) that we use. The
 * decoder copies blocks straight to where the receiver wants them, holds at most one small message, and refuses every
 * length beyond the caps it was given before it reads a byte of it.
 */

export const messageId = {
  choke: 0,
  unchoke: 1,
  interested: 2,
  notInterested: 3,
  have: 4,
  bitfield: 5,
  request: 6,
  piece: 7,
  cancel: 8,
  haveAll: 0x0e,
  haveNone: 0x0f,
  reject: 0x10,
  extended: 20,
} as const

const PROTOCOL = Buffer.from('\x13BitTorrent protocol', 'latin1')
const HANDSHAKE_BYTES = 68
const BLOCK_HEADER_BYTES = 8

export interface Handshake {
  infoHash: string
  peerId: Uint8Array
  extended: boolean
  fast: boolean
}

/** What a decoder hands on. `payload` is only valid during the call. */
export interface WireReceiver {
  handshake(handshake: Handshake): void
  message(id: number, payload: Buffer): void
  /** A block begins: where to put its bytes, or undefined to throw them away. */
  blockTarget(pieceIndex: number, begin: number, sizeBytes: number): Uint8Array | undefined
  /** The block is there whole, or was thrown away. */
  blockEnd(pieceIndex: number, begin: number, sizeBytes: number, kept: boolean): void
}

export class WireError extends Error {
  override readonly name = 'WireError'
}

type State = 'handshake' | 'length' | 'message' | 'blockHeader' | 'block'

export class WireDecoder {
  /** Caps by kind: a message that is not a block, and the bytes of a block (0: none is welcome yet). */
  maxMessageBytes = 4096
  maxBlockBytes = 0
  readonly #receiver: WireReceiver
  #state: State = 'handshake'
  #need = HANDSHAKE_BYTES
  #held = Buffer.allocUnsafe(HANDSHAKE_BYTES)
  #heldBytes = 0
  #messageId = 0
  #block = { pieceIndex: 0, begin: 0, sizeBytes: 0, doneBytes: 0 }
  #target: Uint8Array | undefined

  constructor(receiver: WireReceiver) {
    this.#receiver = receiver
  }

  /** The block under way goes nowhere from now on: its buffer belongs to someone else. */
  discardBlock(): void {
    this.#target = undefined
  }

  /** Takes what came from the socket. @throws WireError, after which the connection must be closed. */
  push(chunk: Buffer): void {
    let at = 0
    while (at < chunk.length) {
      if (this.#state === 'block') at += this.#copyBlock(chunk, at)
      else at += this.#collect(chunk, at)
    }
  }

  #collect(chunk: Buffer, at: number): number {
    if (this.#heldBytes === 0 && chunk.length - at >= this.#need) {
      const need = this.#need
      this.#step(chunk.subarray(at, at + need))
      return need
    }
    if (this.#held.length < this.#need) {
      const grown = Buffer.allocUnsafe(this.#need)
      this.#held.copy(grown, 0, 0, this.#heldBytes)
      this.#held = grown
    }
    const taken = chunk.copy(this.#held, this.#heldBytes, at, at + this.#need - this.#heldBytes)
    this.#heldBytes += taken
    if (this.#heldBytes === this.#need) {
      this.#heldBytes = 0
      this.#step(this.#held.subarray(0, this.#need))
    }
    return taken
  }

  #copyBlock(chunk: Buffer, at: number): number {
    const block = this.#block
    const taken = Math.min(chunk.length - at, block.sizeBytes - block.doneBytes)
    // not `set`, which copies into shared memory a word at a time
    if (this.#target) chunk.copy(this.#target, block.doneBytes, at, at + taken)
    block.doneBytes += taken
    if (block.doneBytes === block.sizeBytes) {
      const kept = this.#target !== undefined
      this.#target = undefined
      this.#expect('length', 4)
      this.#receiver.blockEnd(block.pieceIndex, block.begin, block.sizeBytes, kept)
    }
    return taken
  }

  #expect(state: State, bytes: number): void {
    this.#state = state
    this.#need = bytes
  }

  #step(bytes: Buffer): void {
    switch (this.#state) {
      case 'handshake':
        if (!bytes.subarray(0, PROTOCOL.length).equals(PROTOCOL)) throw new WireError('not a BitTorrent handshake')
        this.#expect('length', 4)
        this.#receiver.handshake({
          infoHash: bytes.toString('hex', 28, 48),
          peerId: Uint8Array.from(bytes.subarray(48, 68)),
          extended: ((bytes[25] ?? 0) & 0x10) !== 0,
          fast: ((bytes[27] ?? 0) & 0x04) !== 0,
        })
        break
      case 'length': {
        const length = bytes.readUInt32BE(0)
        if (length === 0) break
        if (length > Math.max(this.maxMessageBytes, this.maxBlockBytes + BLOCK_HEADER_BYTES + 1))
          throw new WireError(`a message of ${length} bytes`)
        this.#expect('message', 1)
        this.#block.sizeBytes = length - 1
        break
      }
      case 'message':
        this.#stepMessage(bytes)
        break
      case 'blockHeader': {
        const block = this.#block
        block.pieceIndex = bytes.readUInt32BE(0)
        block.begin = bytes.readUInt32BE(4)
        block.doneBytes = 0
        this.#target = this.#receiver.blockTarget(block.pieceIndex, block.begin, block.sizeBytes)
        this.#expect('block', 0)
        break
      }
      case 'block':
        throw new WireError('unreachable')
    }
  }

  /** First its id alone (`#need` is 1), so that a block is never collected; then the rest of a small message. */
  #stepMessage(bytes: Buffer): void {
    const rest = this.#block.sizeBytes
    if (rest < 0) {
      this.#expect('length', 4)
      this.#receiver.message(this.#messageId, bytes)
      return
    }
    this.#messageId = bytes[0] ?? 0
    if (this.#messageId === messageId.piece) {
      this.#block.sizeBytes = rest - BLOCK_HEADER_BYTES
      if (this.#block.sizeBytes <= 0 || this.#block.sizeBytes > this.maxBlockBytes)
        throw new WireError(`a block of ${this.#block.sizeBytes} bytes`)
      this.#expect('blockHeader', BLOCK_HEADER_BYTES)
    } else if (rest + 1 > this.maxMessageBytes) {
      throw new WireError(`a message of ${rest + 1} bytes`)
    } else if (rest === 0) {
      this.#expect('length', 4)
      this.#receiver.message(this.#messageId, bytes.subarray(1))
    } else {
      this.#block.sizeBytes = -1
      this.#expect('message', rest)
    }
  }
}

export function encodeHandshake(infoHash: string, peerId: Uint8Array): Buffer {
  const reserved = Buffer.from([0, 0, 0, 0, 0, 0x10, 0, 0x04])
  return Buffer.concat([PROTOCOL, reserved, Buffer.from(infoHash, 'hex'), peerId])
}

export function encodeMessage(id: number, payload?: Uint8Array): Buffer {
  const message = Buffer.allocUnsafe(5 + (payload?.length ?? 0))
  message.writeUInt32BE(message.length - 4, 0)
  message[4] = id
  if (payload) message.set(payload, 5)
  return message
}

/** have: one number; request, cancel and reject: three. */
export function encodeNumbers(id: number, ...numbers: number[]): Buffer {
  const message = Buffer.allocUnsafe(5 + numbers.length * 4)
  message.writeUInt32BE(message.length - 4, 0)
  message[4] = id
  numbers.forEach((number, i) => {
    message.writeUInt32BE(number, 5 + i * 4)
  })
  return message
}

/** What stands before a block's bytes. */
export function encodeBlockHeader(pieceIndex: number, begin: number, sizeBytes: number): Buffer {
  const header = Buffer.allocUnsafe(13)
  header.writeUInt32BE(9 + sizeBytes, 0)
  header[4] = messageId.piece
  header.writeUInt32BE(pieceIndex, 5)
  header.writeUInt32BE(begin, 9)
  return header
}

export const keepAlive = Buffer.alloc(4)
