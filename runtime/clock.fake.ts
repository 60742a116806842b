import { setImmediate } from 'node:timers/promises'
import type { Clock } from './clock.ts'

interface Sleeper {
  at: number
  wake: () => void
}

/** A clock for tests: it stands still until it is told to advance. */
export class FakeClock implements Clock {
  #now: number
  #monotonic = 0
  readonly #sleepers = new Set<Sleeper>()

  constructor(nowMs = Date.UTC(2026, 0, 1)) {
    this.#now = nowMs
  }

  now(): number {
    return this.#now
  }

  monotonic(): number {
    return this.#monotonic
  }

  /** How many sleep. */
  get sleeping(): number {
    return this.#sleepers.size
  }

  sleep(ms: number, signal?: AbortSignal): Promise<void> {
    if (signal?.aborted) return Promise.reject(signal.reason)
    if (!(ms > 0)) return Promise.resolve()
    return new Promise((resolve, reject) => {
      const abort = () => {
        this.#sleepers.delete(sleeper)
        reject(signal?.reason)
      }
      const wake = () => {
        signal?.removeEventListener('abort', abort)
        resolve()
      }
      const sleeper = { at: this.#monotonic + ms, wake }
      this.#sleepers.add(sleeper)
      signal?.addEventListener('abort', abort, { once: true })
    })
  }

  /** Lets the time pass, waking sleepers in order, each with what it does before the next is woken. */
  async advance(ms: number): Promise<void> {
    const until = this.#monotonic + ms
    for (;;) {
      await setImmediate()
      const next = [...this.#sleepers].filter(({ at }) => at <= until).sort((a, b) => a.at - b.at)[0]
      if (!next) break
      this.#move(next.at)
      this.#sleepers.delete(next)
      next.wake()
    }
    this.#move(until)
  }

  /** The wall clock is set, as by an operator or NTP. */
  setWallClock(nowMs: number): void {
    this.#now = nowMs
  }

  #move(monotonic: number): void {
    this.#now += monotonic - this.#monotonic
    this.#monotonic = monotonic
  }
}
