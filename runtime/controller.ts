import { Fenced, ShoalError, Stalled, Waiting } from '../api/errors.ts'
import { type Clock, systemClock } from './clock.ts'
import type { Logger } from './log.ts'
import type { Metrics } from './metrics.ts'
import { WorkQueue } from './workQueue.ts'

/** What a reconcile wants next: nothing, or to be called again after a while. */
export type ReconcileResult = { afterMs: number } | undefined

export interface ControllerOptions {
  name: string
  /** Brings what is to what should be, for one key. Level-triggered: it reads the state itself. */
  reconcile: (key: string, signal: AbortSignal) => Promise<ReconcileResult>
  /** Keys worked on at once. Default: 4. */
  concurrency?: number
  log: Logger
  metrics: Metrics
  clock?: Clock
}

/**
 * Calls `reconcile` for each key that is enqueued, with the policy of the error it throws: Stalled waits for a change,
 * Waiting comes back after its time, Fenced is dropped, anything else is retried with back-off. `run` may be called
 * again after it ended, as by a leader that lost its lease and won it back: keys that were delayed, interrupted or
 * enqueued meanwhile are worked on first.
 */
export class Controller {
  readonly #options: ControllerOptions
  readonly #queue: WorkQueue
  readonly #log: Logger
  readonly #instruments: Instruments

  constructor(options: ControllerOptions) {
    this.#options = options
    this.#instruments = instruments(options.metrics)
    this.#queue = new WorkQueue({ clock: options.clock ?? systemClock })
    this.#log = options.log.child({ controller: options.name })
  }

  enqueue(key: string): void {
    this.#queue.add(key)
  }

  enqueueAfter(key: string, delayMs: number): void {
    this.#queue.addAfter(key, delayMs)
  }

  /** Works until the signal aborts and the reconciles in flight have ended. */
  async run(signal: AbortSignal): Promise<void> {
    const lanes = Array.from({ length: this.#options.concurrency ?? 4 }, () => this.#lane(signal))
    await Promise.all(lanes)
    this.#queue.expedite()
  }

  async #lane(signal: AbortSignal): Promise<void> {
    const controller = this.#options.name
    const { durations, results, depth } = this.#instruments
    for (let key = await this.#queue.take(signal); key !== undefined; key = await this.#queue.take(signal)) {
      depth.set({ controller }, this.#queue.depth)
      const end = durations.startTimer({ controller })
      const result = await this.#reconcile(key, signal)
      end()
      results.inc({ controller, result })
      this.#queue.done(key)
      depth.set({ controller }, this.#queue.depth)
    }
  }

  /** How it ended: `Success` or the error's code. */
  async #reconcile(key: string, signal: AbortSignal): Promise<string> {
    try {
      const next = await this.#options.reconcile(key, signal)
      this.#queue.forget(key)
      if (next) this.#queue.addAfter(key, next.afterMs)
      return 'Success'
    } catch (error) {
      if (signal.aborted) {
        this.#queue.add(key)
        return 'Stopped'
      }
      return this.#failed(key, error)
    }
  }

  #failed(key: string, error: unknown): string {
    const code = error instanceof ShoalError ? error.code : 'Internal'
    if (error instanceof Stalled || error instanceof Waiting || error instanceof Fenced) {
      this.#queue.forget(key)
      if (error instanceof Waiting) this.#queue.addAfter(key, error.afterMs)
      this.#log.debug({ key, code, reason: error.message }, 'reconcile ended early')
    } else {
      this.#queue.retry(key)
      if (code === 'Internal') this.#log.error({ key, err: error }, 'reconcile failed')
      else this.#log.info({ key, code, reason: (error as Error).message }, 'reconcile will be retried')
    }
    return code
  }
}

type Instruments = ReturnType<typeof instruments>

const instruments = (metrics: Metrics) => ({
  durations: metrics.histogram('reconcile_duration_seconds', 'Time of a reconcile.', ['controller']),
  results: metrics.counter('reconcile_total', 'Reconciles by how they ended.', ['controller', 'result']),
  depth: metrics.gauge('reconcile_queue_keys', 'Keys that wait to be reconciled.', ['controller']),
})
