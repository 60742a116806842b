import type { Descriptor } from '../api/descriptor.ts'
import { Transient } from '../api/errors.ts'
import type { AnnounceAnswer } from '../api/fleetApi.ts'
import { getInto } from '../runtime/getInto.ts'
import type { OriginSource } from '../swarm/originReader.ts'

const timeoutMs = 60_000

type Lease = NonNullable<AnnounceAnswer['origin']>

/** Reads pieces from the region's bucket while the fleet server lends it: ranges of one presigned URL. */
export class OriginLease implements OriginSource {
  readonly #descriptor: Descriptor
  #url = ''
  #parts: number[] = []
  #of = 1
  #untilMs = 0
  #readBytes = 0

  constructor(descriptor: Descriptor) {
    this.#descriptor = descriptor
  }

  /** Which parts are ours now; `''` for none. */
  get lent(): string {
    return this.held ? this.#parts.join() : ''
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
    this.#parts = lease?.parts ?? []
    this.#of = lease?.of ?? 1
    this.#untilMs = lease ? askedMs + lease.forMs : 0
  }

  allows(pieceIndex: number): boolean {
    return this.#parts.includes(pieceIndex % this.#of)
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
      },
    })
  }
}
