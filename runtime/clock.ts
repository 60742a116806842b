import { setTimeout as delay } from 'node:timers/promises'

/** Time, so that tests can pass their own. */
export interface Clock {
  /** Unix milliseconds. */
  now(): number
  /** Milliseconds that only grow, whatever happens to the wall clock. */
  monotonic(): number
  /** Resolves after `ms`; rejects with the signal's reason when it aborts. */
  sleep(ms: number, signal?: AbortSignal): Promise<void>
}

/** A longer timer fires at once. */
const longestTimerMs = 2 ** 31 - 1

export const systemClock: Clock = {
  now: () => Date.now(),
  monotonic: () => performance.now(),
  async sleep(ms, signal) {
    signal?.throwIfAborted()
    try {
      for (let restMs = ms; restMs > 0; restMs -= longestTimerMs)
        await delay(Math.min(restMs, longestTimerMs), undefined, signal ? { signal } : {})
    } catch (error) {
      throw signal?.aborted ? signal.reason : error
    }
  },
}
