import type { Torrent } from '../api/torrent.ts'
import type { ActivePiece } from './activePiece.ts'
import { ActivePieces, type Sender } from './activePieces.ts'
import type { PieceBuffer, PieceBuffers } from './buffers.ts'
import type { LocalChunks } from './localChunks.ts'
import type { Peer } from './peer.ts'
import type { PiecePicker } from './picker.ts'
import { blockBytesOf, blockTimeoutMs, growWindow, pipelineOf } from './pipeline.ts'
import type { RateLimit } from './rate.ts'
import { type Request, requestKey, STANDARD_BLOCK_BYTES, unitsOf } from './request.ts'
import { encodeNumbers, messageId, WireError } from './wire.ts'

/** What a download limit lets us ask for ahead: more than a tick. */
export const LIMIT_AHEAD_MS = 300
const SNUBBED_TIMEOUT_MS = 60_000
/**
 * In the endgame an idle peer is asked for a piece too, when the one that fetches it stood still this long or needs
 * longer for the rest. Without the wait a tenth of every download came twice.
 */
const LATE_MS = 500
/**
 * Pieces under way from other zones, of those that nobody near has; without near peers that deliver, as many as from
 * anywhere. In a simulated crowd of three zones 18 % of all bytes crossed them without a bound, 7 % with 2, 4 % with 1.
 */
const MAX_FAR = 1
const FAR_PATIENCE_MS = 2000
/** Beyond so many news of a peer all that it has is looked through again. */
const MAX_NEWS = 16
/** What a peer may send that we did not ask for, before it is a flood. */
const MAX_UNASKED_BYTES = 32 << 20

interface DownloaderOptions {
  torrent: Torrent
  picker: PiecePicker
  buffers: PieceBuffers
  local: LocalChunks | undefined
  limit: RateLimit
  peers(): Iterable<Peer>
  verify(index: number, buffer: PieceBuffer): Promise<boolean>
  /** A verified piece: store it and tell everyone. */
  keep(index: number, buffer: PieceBuffer): Promise<void>
  ban(sender: Sender, pieceIndex: number): void
  refuse(sender: Sender, pieceIndex: number): void
  /** A piece comes from a peer that has it: others may ask us for it already. */
  passOn(piece: ActivePiece): void
  /** More of a piece that is passed on is there; `dropped`: no more will come, for now. */
  progressed(piece: ActivePiece): void
  dropped(piece: ActivePiece): void
  /** Room for new requests came free. */
  refill(): void
  /** Another swarm goes first: no piece is begun for now. */
  yields(): boolean
  failed(error: unknown): void
}

/**
 * Requests: which block of which piece to ask of whom. A piece is fetched whole from one peer as long as that peer
 * delivers; others help only when no piece is left to begin, and in the endgame late blocks are asked of a second one.
 */
export class Downloader {
  readonly #o: DownloaderOptions
  readonly pieces: ActivePieces
  #stopped = false
  /** When a near peer last sent something. */
  #lastNearMs: number | undefined
  #fedNear = false
  /** When anyone last sent something. */
  lastBlockMs = Number.NEGATIVE_INFINITY
  downloadedBytes = 0
  wastedBytes = 0

  constructor(o: DownloaderOptions) {
    this.#o = o
    this.pieces = new ActivePieces({
      ...o,
      wasted: (sizeBytes) => {
        this.downloadedBytes -= sizeBytes
        this.wastedBytes += sizeBytes
      },
    })
  }

  /** Asks this peer for as much as its pipeline holds. */
  fill(peer: Peer, nowMs: number): void {
    if (this.#stopped || peer.peerChoking || !peer.amInterested || peer.closed) return
    this.#lastNearMs ??= nowMs
    const pipelineBytes = pipelineOf(peer)
    const messages: Buffer[] = []
    while (peer.requestedBytes < pipelineBytes && peer.requests.size < peer.maxRequests) {
      const next = this.#next(peer, nowMs)
      if (!next) break
      const { piece, unit, units } = next
      const begin = unit * STANDARD_BLOCK_BYTES
      const sizeBytes = Math.min(units * STANDARD_BLOCK_BYTES, piece.sizeBytes - begin)
      if (!this.#o.limit.takeWithin(LIMIT_AHEAD_MS, sizeBytes)) break
      for (let i = unit; i < unit + units; i++) piece.ask(i)
      peer.requests.set(requestKey(piece.index, begin), { pieceIndex: piece.index, begin, sizeBytes, sentMs: nowMs })
      peer.requestedBytes += sizeBytes
      messages.push(encodeNumbers(messageId.request, piece.index, begin, sizeBytes))
    }
    if (messages.length > 0) peer.write(Buffer.concat(messages))
  }

  #next(peer: Peer, nowMs: number): { piece: ActivePiece; unit: number; units: number } | undefined {
    const maxUnits = blockBytesOf(peer) / STANDARD_BLOCK_BYTES
    const far = !peer.near && this.#isFedNear(nowMs)
    const mayFetch = (index: number) => !(far && this.#o.picker.isNear(index))
    for (const wanted of [peer, undefined]) {
      for (const piece of this.pieces) {
        if (piece.owner !== wanted || !this.pieces.mayOwn(peer, piece.index)) continue
        const run = wanted || mayFetch(piece.index) ? piece.freeRun(maxUnits) : undefined
        if (!run) continue
        this.pieces.own(piece, peer)
        return { piece, ...run }
      }
    }
    if (this.pieces.full) this.pieces.evictOrphan()
    const room = !this.pieces.full && !(far && this.#farPieces >= MAX_FAR) && !this.#o.yields()
    const index = room ? this.#take(peer, mayFetch) : undefined
    if (index !== undefined) {
      const piece = this.pieces.begin(index, peer, nowMs)
      const run = piece.freeRun(maxUnits)
      return run && { piece, ...run }
    }
    return this.#help(peer, { nowMs, maxUnits, mayFetch })
  }

  /** A part of what others fetch: nobody asked for it yet, or in the endgame it is late. */
  #help(
    peer: Peer,
    o: { nowMs: number; maxUnits: number; mayFetch: (index: number) => boolean },
  ): { piece: ActivePiece; unit: number; units: number } | undefined {
    const helps = (piece: ActivePiece) => !piece.oneSender && peer.has.has(piece.index) && o.mayFetch(piece.index)
    for (const piece of this.pieces) {
      const run = helps(piece) ? piece.freeRun(o.maxUnits) : undefined
      if (run) return { piece, ...run }
    }
    if (!this.#o.picker.exhausted || peer.snubbed || peer.requests.size > 0) return undefined
    for (const piece of this.pieces) {
      if (!helps(piece) || piece.owner === peer || !isLate(piece, o.nowMs)) continue
      const run = piece.lateRun(o.maxUnits, askedOf(peer, piece.index))
      if (run) return { piece, ...run }
    }
    return undefined
  }

  /** A missing piece that it offers; when there was none, only its news are looked at from then on. */
  #take(peer: Peer, mayFetch: (index: number) => boolean): number | undefined {
    const { picker } = this.#o
    const offered = (candidate: number) => this.pieces.mayOwn(peer, candidate) && mayFetch(candidate)
    const known = peer.nothingAt === picker.version
    if (!known) peer.news.length = 0
    const index = known ? picker.takeOneOf(peer.news, offered) : picker.take(offered, { atLeast: 1 })
    if (index === undefined) {
      peer.news.length = 0
      peer.nothingAt = picker.version
    }
    return index
  }

  /** A peer offers a piece that it did not. */
  offered(peer: Peer, index: number): void {
    if (peer.nothingAt !== undefined && peer.news.push(index) > MAX_NEWS) peer.nothingAt = undefined
  }

  /** There are near peers, and they deliver. */
  #isFedNear(nowMs: number): boolean {
    const lately = nowMs - (this.#lastNearMs ?? nowMs) <= FAR_PATIENCE_MS
    const fed = lately && [...this.#o.peers()].some((peer) => peer.near)
    // what only near peers were to be asked for may be had of others from now on
    if (this.#fedNear && !fed) this.#o.picker.version++
    this.#fedNear = fed
    return fed
  }

  get #farPieces(): number {
    let count = 0
    for (const { owner } of this.pieces) if (owner && !owner.near) count++
    return count
  }

  /** Where an arriving block goes; undefined to throw it away. */
  target(peer: Peer, pieceIndex: number, begin: number, sizeBytes: number): Uint8Array | undefined {
    const request = peer.requests.get(requestKey(pieceIndex, begin))
    const piece = this.pieces.get(pieceIndex)
    if (!piece || request?.sizeBytes !== sizeBytes || request.begin !== begin || request.pieceIndex !== pieceIndex)
      return undefined
    if (!piece.receive(...unitsOf(request))) return undefined
    peer.receiving = request
    return piece.buffer.bytes.subarray(begin, begin + sizeBytes)
  }

  /** An arriving block ended. @throws WireError when the peer floods us with what we did not ask for. */
  received(
    peer: Peer,
    block: { pieceIndex: number; begin: number; sizeBytes: number; kept: boolean },
    nowMs: number,
  ): void {
    const request = peer.requests.get(requestKey(block.pieceIndex, block.begin))
    peer.received.add(block.sizeBytes)
    peer.lastBlockMs = nowMs
    peer.snubbed = false
    peer.receiving = undefined
    if (request?.sizeBytes !== block.sizeBytes || request.begin !== block.begin) {
      this.wastedBytes += block.sizeBytes
      peer.wastedBytes += block.sizeBytes
      if (peer.wastedBytes > MAX_UNASKED_BYTES) throw new WireError('sends what was not asked for')
      return
    }
    this.#drop(peer, request)
    const tookMs = nowMs - request.sentMs
    peer.tookMs = tookMs
    this.lastBlockMs = nowMs
    if (peer.near) this.#lastNearMs = nowMs
    growWindow(peer, tookMs, block.sizeBytes)
    const piece = this.pieces.get(block.pieceIndex)
    if (!block.kept || !piece) {
      if (piece) piece.unask(...unitsOf(request), false)
      this.wastedBytes += block.sizeBytes
    } else {
      this.downloadedBytes += block.sizeBytes
      peer.receivedBytes += block.sizeBytes
      piece.lastProgressMs = nowMs
      const whole = piece.done(...unitsOf(request), this.pieces.senderOf(peer, piece.index))
      if (piece.passedOn) this.#o.progressed(piece)
      this.#cancelElsewhere(piece, request)
      if (whole) this.pieces.complete(piece)
    }
    this.fill(peer, nowMs)
  }

  /** The peer refuses a request (BEP 6). @returns whether it was one of ours. */
  rejected(peer: Peer, pieceIndex: number, begin: number): boolean {
    const request = peer.requests.get(requestKey(pieceIndex, begin))
    if (request?.pieceIndex !== pieceIndex || request.begin !== begin) return false
    this.#drop(peer, request)
    const piece = this.pieces.get(pieceIndex)
    piece?.unask(...unitsOf(request), false)
    if (piece?.owner === peer && !piece.checking) this.pieces.disown(piece)
    return true
  }

  /** Everything asked of this peer is free for others: it left, choked us or is too slow. */
  release(peer: Peer): void {
    peer.discardBlock()
    for (const request of [...peer.requests.values()]) {
      const receiving = peer.receiving === request
      this.#drop(peer, request)
      this.pieces.get(request.pieceIndex)?.unask(...unitsOf(request), receiving)
    }
    peer.receiving = undefined
    for (const piece of this.pieces) {
      if (piece.owner !== peer || piece.checking) continue
      this.pieces.disown(piece)
      if (piece.oneSender) piece.reset()
    }
  }

  /** Finds peers that owe us blocks for too long. */
  tick(peers: Iterable<Peer>, nowMs: number): void {
    for (const peer of peers) {
      const oldest = peer.requests.values().next().value
      if (!oldest) continue
      const sinceMs = Math.max(oldest.sentMs, peer.lastBlockMs)
      if (peer.snubbed && nowMs - peer.lastBlockMs > SNUBBED_TIMEOUT_MS) peer.close('delivers nothing')
      else if (nowMs - sinceMs > blockTimeoutMs(peer)) {
        for (const { pieceIndex, begin, sizeBytes } of peer.requests.values())
          peer.write(encodeNumbers(messageId.cancel, pieceIndex, begin, sizeBytes))
        peer.snubbed = true
        this.release(peer)
      }
    }
  }

  /** Nothing is asked or checked any more. */
  async stop(): Promise<void> {
    this.#stopped = true
    await this.pieces.stop()
  }

  /** The endgame asked two peers for it: the slower one need not bother. */
  #cancelElsewhere(piece: ActivePiece, { pieceIndex, begin, sizeBytes }: Request): void {
    if ((piece.asked[begin / STANDARD_BLOCK_BYTES] ?? 0) === 0) return
    for (const peer of this.#o.peers()) {
      const request = peer.requests.get(requestKey(pieceIndex, begin))
      if (request?.sizeBytes !== sizeBytes || peer.receiving === request) continue
      this.#drop(peer, request)
      piece.unask(...unitsOf(request), false)
      peer.write(encodeNumbers(messageId.cancel, pieceIndex, begin, sizeBytes))
    }
  }

  #drop(peer: Peer, request: { pieceIndex: number; begin: number; sizeBytes: number }): void {
    peer.requests.delete(requestKey(request.pieceIndex, request.begin))
    peer.requestedBytes -= request.sizeBytes
  }
}

function isLate(piece: ActivePiece, nowMs: number): boolean {
  if (nowMs - piece.lastProgressMs > LATE_MS) return true
  const bytesPerMs = (piece.owner?.received.bytesPerSecond ?? 0) / 1000
  return nowMs - piece.beganMs > LATE_MS && piece.missingUnits * STANDARD_BLOCK_BYTES > bytesPerMs * LATE_MS
}

/** Tells whether a unit of this piece is asked of this peer. */
function askedOf(peer: Peer, pieceIndex: number): (unit: number) => boolean {
  const ranges = [...peer.requests.values()].filter((request) => request.pieceIndex === pieceIndex).map(unitsOf)
  return (unit) => ranges.some(([first, units]) => unit >= first && unit < first + units)
}
