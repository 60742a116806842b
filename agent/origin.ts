import type { Descriptor } from '../api/descriptor.ts'
import { Transient } from '../api/errors.ts'
import type { AnnounceAnswer } from '../api/fleetApi.ts'
import { getInto } from '../runtime/getInto.ts'
import type { OriginSource } from '../swarm/originReader.ts'

const timeoutMs = 60_000
/** Of what is lent no machine said it has it; a peer that does may have lost its power, or has it since a moment. */
const overdueMs = 2000

type Lease = NonNullable<AnnounceAnswer['origin']>

/** Reads pieces from the region's bucket while the fleet server lends it: ranges of one presigned URL. */
export class OriginLease implements OriginSource {
  readonly #descriptor: Descriptor
  readonly #onDrained: () => void
  #url = ''
  /** Since when each piece is ours. */
  #pieces = new Map<number, number>()
  #untilMs = 0
  #readBytes = 0
  /** Something was read since it was last drained. */
  #fresh = false

  constructor(descriptor: Descriptor, onDrained: () => void) {
    this.#descriptor = descriptor
    this.#onDrained = onDrained
  }

  get held(): boolean {
    return performance.now() < this.#untilMs
  }

  /** How long it is still ours. */
  get leftMs(): number {
    return Math.max(0, this.#untilMs - performance.now())
  }

  /** `askedMs` is when the announce was sent, by the monotonic clock. */
  renew(lease: Lease | undefined, askedMs: number): void {
    this.#url = lease?.url ?? this.#url
    this.#pieces = new Map(lease?.pieces.map((index) => [index, this.#pieces.get(index) ?? askedMs]))
    this.#untilMs = lease ? askedMs + lease.forMs : 0
  }

  allows(pieceIndex: number): boolean {
    return this.#pieces.has(pieceIndex)
  }

  overdue(pieceIndex: number): boolean {
    return performance.now() - (this.#pieces.get(pieceIndex) ?? Number.POSITIVE_INFINITY) > overdueMs
  }

  drained(): void {
    if (!this.#fresh) return
    this.#fresh = false
    this.#onDrained()
  }

  /** Bytes read since the last call. */
  takeReadBytes(): number {
    const bytes = this.#readBytes
    this.#readBytes = 0
    return bytes
  }

  /** An announce that said so was not answered: it is to be said again. */
  giveBack(bytes: number): void {
    this.#readBytes += bytes
  }

  async read(pieceIndex: number, into: Uint8Array, signal: AbortSignal): Promise<void> {
    if (!this.held) throw new Transient('Unavailable', 'the origin lease has ended')
    const first = pieceIndex * this.#descriptor.pieceLengthBytes
    await getInto(this.#url, {
      headers: { range: `bytes=${first}-${first + into.length - 1}` },
      signal: AbortSignal.any([signal, AbortSignal.timeout(timeoutMs)]),
      target: (status) => {
        const whole = status === 200 && into.length === this.#descriptor.sizeBytes
        if (status === 206 || whole) return into
        throw new Transient('StoreUnreachable', `the store answered ${status}`)
      },
      onBytes: (bytes) => {
        this.#readBytes += bytes
        this.#fresh = true
      },
    })
  }
}
