import { type Clock, systemClock } from './clock.ts'

export interface WorkQueueOptions {
  clock?: Clock
  random?: () => number
  /** First delay of `retry`; doubles each time. */
  baseDelayMs?: number
  maxDelayMs?: number
}

/**
 * Keys to be worked on, each once: a key that waits is not added again, and one that is being worked on is not handed
 * out a second time but once more when it is done. (The semantics of client-go's workqueue.)
 *
 *   add → waiting → take → in work → done ─▶ gone, or waiting again if it was added meanwhile
 */
export class WorkQueue {
  readonly #clock: Clock
  readonly #random: () => number
  readonly #baseDelayMs: number
  readonly #maxDelayMs: number
  readonly #waiting = new Set<string>()
  readonly #inWork = new Set<string>()
  readonly #again = new Set<string>()
  readonly #failures = new Map<string, number>()
  readonly #delayed = new Map<string, { at: number; cancel: AbortController }>()
  readonly #takers: (() => void)[] = []

  constructor(options: WorkQueueOptions = {}) {
    this.#clock = options.clock ?? systemClock
    this.#random = options.random ?? Math.random
    this.#baseDelayMs = options.baseDelayMs ?? 50
    this.#maxDelayMs = options.maxDelayMs ?? 60_000
  }

  /** Keys that wait. */
  get depth(): number {
    return this.#waiting.size
  }

  /** Keys that are handed out and not done. */
  get inWork(): number {
    return this.#inWork.size
  }

  /** Adds the key now, also where it was to be added later. */
  add(key: string): void {
    this.#delayed.get(key)?.cancel.abort()
    this.#delayed.delete(key)
    if (this.#inWork.has(key)) this.#again.add(key)
    else if (!this.#waiting.has(key)) {
      this.#waiting.add(key)
      this.#takers.shift()?.()
    }
  }

  /** Adds the key later; the earlier of two such calls counts. */
  addAfter(key: string, delayMs: number): void {
    if (delayMs <= 0) {
      this.add(key)
      return
    }
    const at = this.#clock.monotonic() + delayMs
    const known = this.#delayed.get(key)
    if (known && known.at <= at) return
    known?.cancel.abort()
    const cancel = new AbortController()
    this.#delayed.set(key, { at, cancel })
    this.#clock.sleep(delayMs, cancel.signal).then(
      () => this.add(key),
      () => undefined,
    )
  }

  /** Adds the key after a delay that grows with each retry in a row, with full jitter of its upper half. */
  retry(key: string): void {
    const failures = this.#failures.get(key) ?? 0
    this.#failures.set(key, failures + 1)
    const delayMs = Math.min(this.#maxDelayMs, this.#baseDelayMs * 2 ** Math.min(failures, 30))
    this.addAfter(key, delayMs * (0.5 + this.#random() / 2))
  }

  /** The key worked: its next retry begins with the first delay. */
  forget(key: string): void {
    this.#failures.delete(key)
  }

  /** The next key; undefined when the signal aborts. Every key taken must be given to `done`. */
  async take(signal: AbortSignal): Promise<string | undefined> {
    for (;;) {
      if (signal.aborted) {
        // The wake-up may have been meant for a key: someone else may still want it.
        if (this.#waiting.size > 0) this.#takers.shift()?.()
        return undefined
      }
      const [key] = this.#waiting
      if (key !== undefined) {
        this.#waiting.delete(key)
        this.#inWork.add(key)
        return key
      }
      await new Promise<void>((resolve) => {
        const wake = () => {
          signal.removeEventListener('abort', wake)
          const at = this.#takers.indexOf(wake)
          if (at >= 0) this.#takers.splice(at, 1)
          resolve()
        }
        signal.addEventListener('abort', wake)
        this.#takers.push(wake)
      })
    }
  }

  done(key: string): void {
    this.#inWork.delete(key)
    if (this.#again.delete(key)) this.add(key)
  }

  /** Ends all delays: what was to be added later waits now, so that no timer is left and no key is lost. */
  expedite(): void {
    for (const key of [...this.#delayed.keys()]) this.add(key)
  }
}
