import { pieceSizeBytes, type Torrent } from '../api/torrent.ts'
import { ActivePiece } from './activePiece.ts'
import type { Address } from './addresses.ts'
import { Blame } from './blame.ts'
import type { PieceBuffer, PieceBuffers } from './buffers.ts'
import type { LocalChunks } from './localChunks.ts'
import type { Peer } from './peer.ts'
import type { PiecePicker } from './picker.ts'
import { STANDARD_BLOCK_BYTES } from './request.ts'
import { SecondHand } from './secondHand.ts'

/** Memory for pieces on their way in, hashing and writing included. */
const ACTIVE_BYTES = 40 << 20
const MAX_ACTIVE = 512
/**
 * A piece is passed on as it comes over so many machines. With one, 24 machines used 0.6 of their links while first copies
 * came, and 0.85 with three.
 */
const MAX_HOPS = 3

/** Who sent a block: what is banned if it was wrong. */
export interface Sender {
  id: string
  address: Address
  /** It had not got the piece, and passed it on: it may be as wronged as we are. */
  atSecondHand: boolean
}

interface ActivePiecesOptions {
  torrent: Torrent
  picker: PiecePicker
  buffers: PieceBuffers
  /** What of a piece need not be asked of a peer. */
  local: LocalChunks | undefined
  verify(index: number, buffer: PieceBuffer): Promise<boolean>
  /** A verified piece: store it and tell everyone. */
  keep(index: number, buffer: PieceBuffer): Promise<void>
  ban(sender: Sender, pieceIndex: number): void
  /** It passed on wrong bytes too often: what is on its way from it is off, and nothing is taken at second hand again. */
  refuse(sender: Sender, pieceIndex: number): void
  /** A piece comes from a peer that has it: others may ask us for it already. */
  passOn(piece: ActivePiece): void
  /** More of a piece that is passed on is there; `dropped`: no more will come, for now. */
  progressed(piece: ActivePiece): void
  dropped(piece: ActivePiece): void
  /** A piece failed its hash, and so much of it came from peers. */
  wasted(sizeBytes: number): void
  /** Room for new pieces came free. */
  refill(): void
  failed(error: unknown): void
}

/** So many pieces of this length are on their way in at once. */
export function mostActive(pieceLengthBytes: number): number {
  return Math.min(MAX_ACTIVE, Math.max(4, Math.floor(ACTIVE_BYTES / pieceLengthBytes)))
}

/** The pieces on their way in: who fetches each, who may have it from us meanwhile, and whose fault a wrong one is. */
export class ActivePieces {
  readonly #o: ActivePiecesOptions
  readonly #pieces = new Map<number, ActivePiece>()
  readonly #blame = new Blame<Sender>(STANDARD_BLOCK_BYTES)
  readonly #senders = new Map<string, Sender>()
  readonly #secondHand = new SecondHand()
  /** Came wrong at second hand: to be taken only from who has them. */
  readonly #suspect = new Set<number>()
  /** Pieces being checked or filled from disk. */
  readonly #work = new Set<Promise<void>>()
  readonly #max: number
  #reserved = 0

  constructor(o: ActivePiecesOptions) {
    this.#o = o
    this.#max = mostActive(o.torrent.pieceLengthBytes)
  }

  get(index: number): ActivePiece | undefined {
    return this.#pieces.get(index)
  }

  [Symbol.iterator](): Iterator<ActivePiece> {
    return this.#pieces.values()
  }

  get full(): boolean {
    return this.#pieces.size + this.#reserved >= this.#max
  }

  /** Makes a piece from elsewhere (the origin) count like one from peers. The buffer stays the caller's. */
  reserve(): boolean {
    if (this.full) return false
    this.#reserved++
    return true
  }

  unreserve(): void {
    this.#reserved--
  }

  /** A piece that was taken from the picker, for this peer to fetch. */
  begin(index: number, peer: Peer, nowMs: number): ActivePiece {
    const sizeBytes = pieceSizeBytes(this.#o.torrent, index)
    const piece = new ActivePiece({
      index,
      sizeBytes,
      buffer: this.#o.buffers.acquire(this.#o.torrent.pieceLengthBytes),
      oneSender: this.#blame.wantsOneSender(index),
      units: Math.ceil(sizeBytes / STANDARD_BLOCK_BYTES),
    })
    piece.beganMs = piece.lastProgressMs = nowMs
    this.#pieces.set(index, piece)
    this.own(piece, peer)
    if (!piece.oneSender)
      for (const run of this.#o.local?.runs(index, STANDARD_BLOCK_BYTES) ?? []) this.#fill(piece, run)
    return piece
  }

  /** These units come from the disk. */
  #fill(piece: ActivePiece, { unit, units }: { unit: number; units: number }): void {
    const begin = unit * STANDARD_BLOCK_BYTES
    const bytes = piece.buffer.bytes.subarray(begin, Math.min(piece.sizeBytes, begin + units * STANDARD_BLOCK_BYTES))
    piece.receive(unit, units)
    const filling = async () => {
      if (await this.#o.local?.read(piece.index, begin, bytes)) {
        piece.localBytes += bytes.length
        const whole = piece.filled(unit, units)
        if (piece.passedOn) this.#o.progressed(piece)
        if (whole) this.complete(piece)
      } else {
        piece.unask(unit, units, true)
        this.#o.refill()
      }
    }
    this.#track(filling())
  }

  /** What has to come from one sender comes from one who has it. */
  mayOwn(peer: Peer, index: number): boolean {
    if (peer.has.has(index)) return true
    return peer.begun.has(index) && !this.#blame.wantsOneSender(index) && !this.#suspect.has(index)
  }

  /**
   * Fewer hops at each step: so nobody waits for himself, and a wrong piece is so many steps from its sender at most.
   */
  own(piece: ActivePiece, peer: Peer): void {
    if (piece.owner === peer) return
    piece.owner = peer
    const hops = peer.has.has(piece.index) ? 0 : (peer.begun.get(piece.index) ?? MAX_HOPS)
    piece.hops = hops + 1
    if (hops > 0) piece.secondHand = true
    if (piece.oneSender || piece.hops > MAX_HOPS) return
    piece.passedOn = true
    this.#o.passOn(piece)
  }

  disown(piece: ActivePiece): void {
    piece.owner = undefined
    if (!piece.passedOn) return
    piece.passedOn = false
    this.#o.dropped(piece)
  }

  /** A piece that peers may ask us for while it comes. */
  passedOn(index: number): ActivePiece | undefined {
    const piece = this.#pieces.get(index)
    return piece?.passedOn ? piece : undefined
  }

  /** All of them. */
  allPassedOn(): ActivePiece[] {
    return [...this.#pieces.values()].filter((piece) => piece.passedOn)
  }

  /** A piece begun by a peer that left must not hold the room that pieces others have could use. */
  evictOrphan(which: (index: number) => boolean = () => true): boolean {
    for (const piece of this.#pieces.values()) {
      if (piece.owner || !piece.idle || !which(piece.index)) continue
      this.#pieces.delete(piece.index)
      this.#o.buffers.release(piece.buffer)
      this.#o.picker.putBack(piece.index)
      return true
    }
    return false
  }

  /** Whether a piece may be had of this peer that it has only begun. */
  mayPassOn(peer: Peer): boolean {
    return !this.#secondHand.refuses(peer)
  }

  senderOf(peer: Peer, index: number): Sender {
    const atSecondHand = !peer.has.has(index)
    const key = `${peer.id}${atSecondHand}`
    let sender = this.#senders.get(key)
    if (!sender) {
      if (this.#senders.size > 10_000) this.#senders.clear()
      sender = { id: peer.id, address: peer.address, atSecondHand }
      this.#senders.set(key, sender)
    }
    return sender
  }

  /** All of it is there: to be hashed and kept, or fetched again. */
  complete(piece: ActivePiece): void {
    this.#track(this.#check(piece))
  }

  #track(work: Promise<void>): void {
    const tracked = work.catch((error) => this.#o.failed(error)).finally(() => this.#work.delete(tracked))
    this.#work.add(tracked)
  }

  async #check(piece: ActivePiece): Promise<void> {
    const { index, buffer } = piece
    piece.checking = true
    const bytes = buffer.bytes.subarray(0, piece.sizeBytes)
    try {
      if (await this.#o.verify(index, buffer)) {
        for (const sender of this.#blame.succeeded(index, bytes)) this.#accuse(sender, index)
        await this.#o.keep(index, buffer)
        this.#o.local?.took(piece.localBytes)
      } else {
        this.#o.wasted(piece.sizeBytes - piece.localBytes)
        this.#findFault(piece, bytes)
        this.#o.picker.putBack(index)
      }
    } catch (error) {
      this.#o.picker.putBack(index)
      throw error
    } finally {
      this.#pieces.delete(index)
      this.disown(piece)
      this.#o.buffers.release(buffer)
    }
    this.#o.refill()
  }

  #findFault({ index, localBytes, secondHand, senders }: ActivePiece, bytes: Uint8Array): void {
    // a disk that is not as described wrongs whoever sent the rest: without it, the next time tells
    if (localBytes > 0) this.#o.local?.forget(index, new Error('its chunks are not what their digests say'))
    else {
      if (secondHand) this.#suspect.add(index)
      const sender = this.#blame.failed(index, bytes, senders)
      if (sender) this.#accuse(sender, index)
    }
  }

  /** It sent wrong bytes: what else came from it is not waited for. */
  #accuse(sender: Sender, index: number): void {
    const sentence = sender.atSecondHand ? this.#secondHand.wrong(sender) : 'ban'
    if (sentence === 'nothing') return
    for (const piece of this.#pieces.values()) this.#o.wasted(piece.forget(sender.id))
    if (sentence === 'ban') this.#o.ban(sender, index)
    else this.#o.refuse(sender, index)
  }

  /** Waits for what is being checked; forgets the rest. */
  async stop(): Promise<void> {
    while (this.#work.size > 0) await Promise.all(this.#work)
    for (const piece of this.#pieces.values()) this.#o.buffers.release(piece.buffer)
    this.#pieces.clear()
  }
}
