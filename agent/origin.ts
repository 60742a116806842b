import { type Descriptor, pieceSizeBytes } from '../api/descriptor.ts'
import { ShoalError, Transient } from '../api/errors.ts'
import type { AnnounceAnswer } from '../api/fleetApi.ts'
import type { OriginSource } from '../swarm/originReader.ts'

const timeoutMs = 60_000

type Lease = NonNullable<AnnounceAnswer['origin']>

/** Reads pieces from the region's bucket while the fleet server lends it: ranges of one presigned URL. */
export class OriginLease implements OriginSource {
  readonly #descriptor: Descriptor
  #url = ''
  #untilMs = 0
  #readBytes = 0

  constructor(descriptor: Descriptor) {
    this.#descriptor = descriptor
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
    this.#untilMs = lease ? askedMs + lease.forMs : 0
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

  async read(pieceIndex: number, signal: AbortSignal): Promise<Uint8Array> {
    if (!this.held) throw new Transient('Unavailable', 'the origin lease has ended')
    const first = pieceIndex * this.#descriptor.pieceLengthBytes
    const sizeBytes = pieceSizeBytes(this.#descriptor, pieceIndex)
    const response = await fetch(this.#url, {
      headers: { range: `bytes=${first}-${first + sizeBytes - 1}` },
      signal: AbortSignal.any([signal, AbortSignal.timeout(timeoutMs)]),
    })
    const whole = response.status === 200 && sizeBytes === this.#descriptor.sizeBytes
    if (response.status !== 206 && !whole) {
      await response.body?.cancel()
      throw new Transient('StoreUnreachable', `the store answered ${response.status}`)
    }
    return this.#collect(response, sizeBytes)
  }

  async #collect(response: Response, sizeBytes: number): Promise<Uint8Array> {
    const bytes = new Uint8Array(sizeBytes)
    let at = 0
    for await (const chunk of response.body ?? []) {
      this.#readBytes += chunk.length
      if (at + chunk.length > sizeBytes) throw new ShoalError('TooLarge', 'the store sent more than was asked for')
      bytes.set(chunk, at)
      at += chunk.length
    }
    if (at !== sizeBytes) throw new Transient('StoreUnreachable', 'the store sent less than was asked for')
    return bytes
  }
}
