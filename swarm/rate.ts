import type { Clock } from './clock.ts'

/** Bytes per second over the last seconds, weighted towards now. Fed with bytes, read by `tick`. */
export class Speed {
  #bytes = 0
  #lastMs: number
  bytesPerSecond = 0

  constructor(nowMs: number) {
    this.#lastMs = nowMs
  }

  add(bytes: number): void {
    this.#bytes += bytes
  }

  /** Call now and then, at any interval. */
  tick(nowMs: number): void {
    const seconds = (nowMs - this.#lastMs) / 1000
    if (seconds <= 0) return
    const weight = 1 - Math.exp(-seconds)
    this.bytesPerSecond += (this.#bytes / seconds - this.bytesPerSecond) * weight
    this.#bytes = 0
    this.#lastMs = nowMs
  }
}

/** A token bucket for a whole process, first come, first served. */
export class RateLimit {
  readonly #bytesPerSecond: () => number
  readonly #clock: Clock
  #freeAtMs = 0

  /** Asked for its rate each time, which may be `Infinity` for none. */
  constructor(bytesPerSecond: () => number, clock: Clock) {
    this.#bytesPerSecond = bytesPerSecond
    this.#clock = clock
  }

  /** Resolves when these bytes may go: at once while within 100 ms of the rate. */
  async take(bytes: number): Promise<void> {
    const waitMs = this.#spend(bytes)
    if (waitMs > 0) await new Promise<void>((resolve) => this.#clock.after(waitMs, resolve))
  }

  /** Takes them unless they would have to wait for longer than said. */
  takeWithin(maxWaitMs: number, bytes: number): boolean {
    if (this.#freeAtMs - this.#clock.nowMs() > maxWaitMs) return false
    this.#spend(bytes)
    return true
  }

  #spend(bytes: number): number {
    const bytesPerSecond = this.#bytesPerSecond()
    if (bytesPerSecond === Number.POSITIVE_INFINITY) return 0
    const nowMs = this.#clock.nowMs()
    this.#freeAtMs = Math.max(this.#freeAtMs, nowMs - 100) + (bytes / bytesPerSecond) * 1000
    return this.#freeAtMs - nowMs
  }
}
