import { setTimeout as delay } from 'node:timers/promises'
import { Transient } from '../api/errors.ts'

/** Runs `each` over the items, at most `limit` at a time, and stops at the first error. */
export async function forEachParallel<T>(
  items: T[],
  limit: number,
  each: (item: T, signal: AbortSignal) => Promise<void>,
  signal?: AbortSignal,
): Promise<void> {
  const failed = new AbortController()
  const any = signal ? AbortSignal.any([signal, failed.signal]) : failed.signal
  let next = 0
  const runner = async () => {
    while (next < items.length) {
      any.throwIfAborted()
      await each(items[next++] as T, any)
    }
  }
  const runners = Array.from({ length: Math.min(limit, items.length) }, async () => {
    try {
      await runner()
    } catch (error) {
      failed.abort(error)
      throw error
    }
  })
  const results = await Promise.allSettled(runners)
  signal?.throwIfAborted()
  if (results.some((result) => result.status === 'rejected')) throw failed.signal.reason
}

/** Tries again after a Transient error, `attempts` times in all, after 0.2 s, 0.4 s … and up to as much again. */
export async function retry<T>(attempts: number, signal: AbortSignal, attempt: () => Promise<T>): Promise<T> {
  for (let n = 1; ; n++) {
    try {
      return await attempt()
    } catch (error) {
      if (n >= attempts || !(error instanceof Transient) || signal.aborted) throw error
      const waitMs = 200 * 2 ** (n - 1)
      await delay(waitMs + Math.random() * waitMs, undefined, { signal })
    }
  }
}
