import type { PieceBuffer, PieceBuffers } from './buffers.ts'
import { AGENT_BLOCK_BYTES, MAX_REQUESTS, type Peer } from './peer.ts'
import type { RateLimit } from './rate.ts'
import { encodeBlockHeader, encodeNumbers, messageId, WireError } from './wire.ts'

/** What may wait in one socket: piece data beyond it stays a request. */
const MAX_UNSENT_BYTES = 1 << 20

interface Wanted {
  pieceIndex: number
  begin: number
  sizeBytes: number
}

interface Queue {
  wanted: Wanted[]
  running: boolean
}

interface UploaderOptions {
  buffers: PieceBuffers
  limit: RateLimit
  pieceSizeBytes(index: number): number
  has(index: number): boolean
  /** A piece we have, held for us; undefined if it turns out damaged. */
  load(index: number): Promise<PieceBuffer | undefined>
}

/** Serves requests, one at a time per peer and only as fast as its socket drains. */
export class Uploader {
  readonly #o: UploaderOptions
  readonly #queues = new WeakMap<Peer, Queue>()
  uploadedBytes = 0

  constructor(o: UploaderOptions) {
    this.#o = o
  }

  /** @throws WireError on a request that makes no sense, or one too many. */
  request(peer: Peer, wanted: Wanted): void {
    const { pieceIndex, begin, sizeBytes } = wanted
    if (sizeBytes === 0 || sizeBytes > AGENT_BLOCK_BYTES || begin + sizeBytes > this.#o.pieceSizeBytes(pieceIndex))
      throw new WireError('a request outside the piece')
    if (peer.unchokedSinceMs === undefined || !this.#o.has(pieceIndex)) {
      reject(peer, wanted)
      return
    }
    const queue = this.#queueOf(peer)
    if (queue.wanted.length >= 2 * MAX_REQUESTS) throw new WireError('too many requests')
    queue.wanted.push(wanted)
    if (!queue.running) void this.#serve(peer, queue)
  }

  cancel(peer: Peer, cancelled: Wanted): void {
    const queue = this.#queueOf(peer)
    const at = queue.wanted.findIndex((w) => w.pieceIndex === cancelled.pieceIndex && w.begin === cancelled.begin)
    for (const wanted of at < 0 ? [] : queue.wanted.splice(at, 1)) reject(peer, wanted)
  }

  /** It was choked: what it asked for is off. */
  drop(peer: Peer): void {
    for (const wanted of this.#queueOf(peer).wanted.splice(0)) reject(peer, wanted)
  }

  async #serve(peer: Peer, queue: Queue): Promise<void> {
    queue.running = true
    try {
      for (let next = queue.wanted.shift(); next && !peer.closed; next = queue.wanted.shift()) {
        await this.#o.limit.take(next.sizeBytes)
        const buffer = await this.#o.load(next.pieceIndex)
        if (buffer && !peer.closed) await this.#send(peer, next, buffer)
        else if (buffer) this.#o.buffers.release(buffer)
        else reject(peer, next)
      }
    } catch (error) {
      peer.close(`cannot read a piece: ${error instanceof Error ? error.message : String(error)}`)
    } finally {
      queue.running = false
    }
  }

  async #send(peer: Peer, { pieceIndex, begin, sizeBytes }: Wanted, buffer: PieceBuffer): Promise<void> {
    const { socket } = peer
    socket.cork()
    peer.write(encodeBlockHeader(pieceIndex, begin, sizeBytes))
    // the callback comes in any case, also when the socket fails
    socket.write(buffer.bytes.subarray(begin, begin + sizeBytes), () => this.#o.buffers.release(buffer))
    socket.uncork()
    this.uploadedBytes += sizeBytes
    if (socket.writableLength <= MAX_UNSENT_BYTES) return
    await new Promise<void>((resolve) => {
      const settle = () => {
        socket.off('drain', settle).off('close', settle)
        resolve()
      }
      socket.on('drain', settle).on('close', settle)
    })
  }

  #queueOf(peer: Peer): Queue {
    let queue = this.#queues.get(peer)
    if (!queue) {
      queue = { wanted: [], running: false }
      this.#queues.set(peer, queue)
    }
    return queue
  }
}

function reject(peer: Peer, { pieceIndex, begin, sizeBytes }: Wanted): void {
  if (peer.fast) peer.write(encodeNumbers(messageId.reject, pieceIndex, begin, sizeBytes))
}
