import type { ActivePiece } from './activePiece.ts'
import type { PieceBuffer, PieceBuffers } from './buffers.ts'
import { AGENT_BLOCK_BYTES, MAX_REQUESTS, type Peer } from './peer.ts'
import { type RateLimit, Speed } from './rate.ts'
import { unitsOf } from './request.ts'
import { encodeBlockHeader, encodeNumbers, messageId, WireError } from './wire.ts'

/** What may wait in one socket: piece data beyond it stays a request. */
const MAX_UNSENT_BYTES = 1 << 20

/** Below this share of our fastest our link has room. */
const SPARE = 0.7

/** What a peer asks for. */
export interface Wanted {
  pieceIndex: number
  begin: number
  sizeBytes: number
}

/** A block, held for whoever asked for it. */
export interface LoadedBlock {
  buffer: PieceBuffer
  /** Where in the buffer it begins. */
  at: number
}

interface Queue {
  /** Of the piece it was sent last. */
  piece: { index: number; sentBytes: number }
  wanted: Wanted[]
  /** Of pieces that are on their way to us: asked for, and not there yet. */
  parked: Wanted[]
  running: boolean
}

interface UploaderOptions {
  nowMs: number
  buffers: PieceBuffers
  limit: RateLimit
  pieceSizeBytes(index: number): number
  has(index: number): boolean
  /** A peer was sent as many bytes of a piece as it has. */
  sentWhole(peer: Peer, index: number): void
  /** A piece that we get from a peer that has it, and pass on as it comes. */
  passedOn(index: number): ActivePiece | undefined
  /** A block of a piece we have; undefined if the piece turns out damaged. */
  load(block: Wanted): Promise<LoadedBlock | undefined>
}

/** Serves requests, one at a time per peer and only as fast as its socket drains. */
export class Uploader {
  readonly #o: UploaderOptions
  readonly #queues = new Map<Peer, Queue>()
  uploadedBytes = 0
  readonly #sent: Speed
  #fastest = 0

  constructor(o: UploaderOptions) {
    this.#o = o
    this.#sent = new Speed(o.nowMs)
  }

  /** Time passed. */
  tick(nowMs: number): void {
    this.#sent.tick(nowMs)
    this.#fastest = Math.max(this.#fastest, this.#sent.bytesPerSecond)
  }

  /** Nobody waits for us, or we sent much more before. */
  get spare(): boolean {
    if (this.#sent.bytesPerSecond < SPARE * this.#fastest) return true
    for (const queue of this.#queues.values()) if (queue.wanted.length > 0) return false
    return true
  }

  /** @throws WireError on a request that makes no sense, or one too many. */
  request(peer: Peer, wanted: Wanted): void {
    const { pieceIndex, begin, sizeBytes } = wanted
    if (sizeBytes === 0 || sizeBytes > AGENT_BLOCK_BYTES || begin + sizeBytes > this.#o.pieceSizeBytes(pieceIndex))
      throw new WireError('a request outside the piece')
    const passedOn = this.#o.passedOn(pieceIndex)
    if (peer.unchokedSinceMs === undefined || !(this.#o.has(pieceIndex) || passedOn) || passedOn?.owner === peer) {
      reject(peer, wanted)
      return
    }
    const queue = this.#queueOf(peer)
    if (queue.wanted.length + queue.parked.length >= 2 * MAX_REQUESTS) throw new WireError('too many requests')
    if (passedOn && !passedOn.holds(...unitsOf(wanted))) queue.parked.push(wanted)
    else this.#enqueue(peer, queue, [wanted])
  }

  /** More of a piece that is passed on is there: who waits for it gets it. */
  progressed(piece: ActivePiece): void {
    for (const [peer, queue] of this.#queues) {
      const there = ({ pieceIndex, ...block }: Wanted) => pieceIndex === piece.index && piece.holds(...unitsOf(block))
      if (!queue.parked.some(there)) continue
      const ready = queue.parked.filter(there)
      queue.parked = queue.parked.filter((wanted) => !there(wanted))
      this.#enqueue(peer, queue, ready)
    }
  }

  /** A piece that was passed on will not come: who waits for it has to ask others. */
  dropped(piece: ActivePiece): void {
    for (const [peer, queue] of this.#queues) {
      const off = queue.parked.filter((wanted) => wanted.pieceIndex === piece.index)
      if (off.length === 0) continue
      queue.parked = queue.parked.filter((wanted) => wanted.pieceIndex !== piece.index)
      for (const wanted of off) reject(peer, wanted)
    }
  }

  #enqueue(peer: Peer, queue: Queue, wanted: Wanted[]): void {
    queue.wanted.push(...wanted)
    if (!queue.running) void this.#serve(peer, queue)
  }

  cancel(peer: Peer, cancelled: Wanted): void {
    const { wanted, parked } = this.#queueOf(peer)
    for (const list of [wanted, parked]) {
      const at = list.findIndex((w) => w.pieceIndex === cancelled.pieceIndex && w.begin === cancelled.begin)
      for (const off of at < 0 ? [] : list.splice(at, 1)) reject(peer, off)
    }
  }

  /** It was choked: what it asked for is off. */
  drop(peer: Peer): void {
    const queue = this.#queueOf(peer)
    for (const wanted of [...queue.wanted.splice(0), ...queue.parked.splice(0)]) reject(peer, wanted)
    if (peer.closed) this.#queues.delete(peer)
  }

  async #serve(peer: Peer, queue: Queue): Promise<void> {
    queue.running = true
    try {
      for (let next = queue.wanted.shift(); next && !peer.closed; next = queue.wanted.shift()) {
        await this.#o.limit.take(next.sizeBytes)
        const block = this.#o.has(next.pieceIndex) ? await this.#o.load(next) : this.#holdPassedOn(next)
        if (block && !peer.closed) {
          await this.#send(peer, next, block)
          this.#count(peer, queue, next)
        } else if (block) this.#o.buffers.release(block.buffer)
        else reject(peer, next)
      }
    } catch (error) {
      peer.close(`cannot read a piece: ${error instanceof Error ? error.message : String(error)}`)
    } finally {
      queue.running = false
    }
  }

  #count(peer: Peer, queue: Queue, { pieceIndex, sizeBytes }: Wanted): void {
    if (queue.piece.index !== pieceIndex) queue.piece = { index: pieceIndex, sentBytes: 0 }
    queue.piece.sentBytes += sizeBytes
    if (queue.piece.sentBytes === this.#o.pieceSizeBytes(pieceIndex)) this.#o.sentWhole(peer, pieceIndex)
  }

  async #send(peer: Peer, { pieceIndex, begin, sizeBytes }: Wanted, { buffer, at }: LoadedBlock): Promise<void> {
    const { socket } = peer
    socket.cork()
    peer.write(encodeBlockHeader(pieceIndex, begin, sizeBytes))
    peer.flush()
    // the callback comes in any case, also when the socket fails
    socket.write(buffer.bytes.subarray(at, at + sizeBytes), () => this.#o.buffers.release(buffer))
    // with all that is sent in this turn of the event loop: in writes of 128 KiB the kernel needs twice the time
    setImmediate(() => socket.uncork())
    this.uploadedBytes += sizeBytes
    this.#sent.add(sizeBytes)
    if (socket.writableLength <= MAX_UNSENT_BYTES) return
    await new Promise<void>((resolve) => {
      const settle = () => {
        socket.off('drain', settle).off('close', settle)
        resolve()
      }
      socket.on('drain', settle).on('close', settle)
    })
  }

  #holdPassedOn(wanted: Wanted): LoadedBlock | undefined {
    const piece = this.#o.passedOn(wanted.pieceIndex)
    if (!piece?.holds(...unitsOf(wanted))) return undefined
    return { buffer: this.#o.buffers.hold(piece.buffer), at: wanted.begin }
  }

  #queueOf(peer: Peer): Queue {
    let queue = this.#queues.get(peer)
    if (!queue) {
      queue = { piece: { index: -1, sentBytes: 0 }, wanted: [], parked: [], running: false }
      this.#queues.set(peer, queue)
    }
    return queue
  }
}

function reject(peer: Peer, { pieceIndex, begin, sizeBytes }: Wanted): void {
  if (peer.fast) peer.write(encodeNumbers(messageId.reject, pieceIndex, begin, sizeBytes))
}
