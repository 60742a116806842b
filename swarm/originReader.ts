import type { ActivePieces } from './activePieces.ts'
import type { PieceBuffer, PieceBuffers } from './buffers.ts'
import type { Clock } from './clock.ts'
import { LIMIT_AHEAD_MS } from './downloader.ts'
import type { PiecePicker } from './picker.ts'
import type { RateLimit } from './rate.ts'

const READS_AT_ONCE = 4
const FIRST_RETRY_MS = 1000
const LAST_RETRY_MS = 30_000
/** Peers that have the missing pieces but don't deliver this long: then the origin reads those too. */
const PATIENCE_MS = 5000

/** Reads pieces from the region's bucket, for as long as its owner has the lease. */
export interface OriginSource {
  /** Fills `into` with this piece's bytes. Rejects when the signal aborts, and writes nothing after that. */
  read(pieceIndex: number, into: Uint8Array, signal: AbortSignal): Promise<void>
  /** Whether the lease covers this piece; all, by default. */
  allows?(pieceIndex: number): boolean
  /** Whether to read it though a peer says it has it: nobody delivered it in all the time it is lent. */
  overdue?(pieceIndex: number): boolean
  /** Nothing of the lease is left to read. */
  drained?(): void
}

interface OriginReaderOptions {
  picker: PiecePicker
  buffers: PieceBuffers
  pieces: ActivePieces
  limit: RateLimit
  clock: Clock
  pieceSizeBytes(index: number): number
  verify(index: number, buffer: PieceBuffer): Promise<boolean>
  keep(index: number, buffer: PieceBuffer): Promise<void>
  /** A seed is connected that has every piece, and says so one by one. */
  promised(): boolean
  /** Another swarm goes first. */
  yields(): boolean
  /** A read failed, or gave wrong bytes. */
  fault(index: number, error: unknown): void
  failed(error: unknown): void
}

/**
 * Fetches from the origin what no connected peer has, a few pieces at a time. It is withdrawn and given back as the
 * lease comes and goes.
 */
export class OriginReader {
  readonly #o: OriginReaderOptions
  readonly #reads = new Set<Promise<void>>()
  #lease: { source: OriginSource; abort: AbortController } | undefined
  #failures = 0
  #pausedUntilMs = 0
  /** When any piece came, from anywhere. */
  lastGainMs: number
  downloadedBytes = 0
  wastedBytes = 0

  constructor(o: OriginReaderOptions) {
    this.#o = o
    this.lastGainMs = o.clock.nowMs()
  }

  /** Given again, a source goes on: what it covers may have changed. */
  set(source: OriginSource | undefined): void {
    if (source && source === this.#lease?.source) {
      this.fill()
      return
    }
    this.#lease?.abort.abort()
    this.#lease = source && { source, abort: new AbortController() }
    this.#failures = 0
    this.#pausedUntilMs = 0
    this.fill()
  }

  /** Any piece came, from anywhere. */
  gained(): void {
    this.lastGainMs = this.#o.clock.nowMs()
  }

  fill(): void {
    const nowMs = this.#o.clock.nowMs()
    const lease = this.#lease
    if (!lease || nowMs < this.#pausedUntilMs) return
    const patient = nowMs - this.lastGainMs < PATIENCE_MS
    if (this.#o.yields() || (patient && this.#o.promised())) return
    while (this.#reads.size < READS_AT_ONCE) {
      const mayRead = (i: number) => (lease.source.allows?.(i) ?? true) && (!patient || this.#isAlone(i, lease.source))
      // what was begun of a peer that is gone, and nobody else has, is to be had here alone
      if (this.#o.pieces.full) this.#o.pieces.evictOrphan(mayRead)
      if (!this.#o.pieces.reserve()) return
      let index = this.#o.picker.take(mayRead)
      if (index === undefined && this.#o.pieces.evictOrphan(mayRead)) index = this.#o.picker.take(mayRead)
      if (index === undefined || !this.#o.limit.takeWithin(LIMIT_AHEAD_MS, this.#o.pieceSizeBytes(index))) {
        if (index !== undefined) this.#o.picker.putBack(index)
        this.#o.pieces.unreserve()
        if (index === undefined && this.#reads.size === 0) lease.source.drained?.()
        return
      }
      const read: Promise<void> = this.#read(index, lease).finally(() => {
        this.#reads.delete(read)
        this.#o.pieces.unreserve()
        this.fill()
      })
      this.#reads.add(read)
    }
  }

  #isAlone(index: number, source: OriginSource): boolean {
    return this.#o.picker.availability(index) === 0 || (source.overdue?.(index) ?? false)
  }

  async #read(index: number, { source, abort }: { source: OriginSource; abort: AbortController }): Promise<void> {
    const sizeBytes = this.#o.pieceSizeBytes(index)
    const buffer = this.#o.buffers.acquire(sizeBytes)
    try {
      await source.read(index, buffer.bytes.subarray(0, sizeBytes), abort.signal)
      if (!(await this.#o.verify(index, buffer))) {
        this.wastedBytes += sizeBytes
        throw new Error('the origin gave other bytes than were built')
      }
    } catch (error) {
      this.#o.picker.putBack(index)
      this.#o.buffers.release(buffer)
      if (!abort.signal.aborted) this.#fault(index, error)
      return
    }
    try {
      await this.#o.keep(index, buffer)
      this.downloadedBytes += sizeBytes
      this.#failures = 0
    } catch (error) {
      this.#o.picker.putBack(index)
      this.#o.failed(error)
    } finally {
      this.#o.buffers.release(buffer)
    }
  }

  #fault(index: number, error: unknown): void {
    const backoffMs = Math.min(LAST_RETRY_MS, FIRST_RETRY_MS * 2 ** this.#failures++)
    this.#pausedUntilMs = this.#o.clock.nowMs() + backoffMs
    this.#o.fault(index, error)
  }

  async stop(): Promise<void> {
    this.#lease?.abort.abort()
    this.#lease = undefined
    await Promise.all(this.#reads)
  }
}
