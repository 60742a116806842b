import { ShoalError } from '../../api/errors.ts'
import type { Store } from '../../artifacts/store.ts'
import { dropLog, type OverJob, overWithLog } from '../../queue/keptLog.ts'
import { type Clock, systemClock } from '../../runtime/clock.ts'
import type { Logger } from '../../runtime/log.ts'
import type { Counter, Gauge, Metrics } from '../../runtime/metrics.ts'
import type { Database } from '../../runtime/sql.ts'
import { moveLog } from './logObject.ts'

export interface LogKeeperOptions {
  database: Database
  homeStore: () => Promise<Store>
  log: Logger
  metrics: Metrics
  clock?: Clock
  /** Between two looks for builds that are over. Default: 10 s. */
  everyMs?: number
  /** The same, while the bucket doesn't take them. Default: 30 s. */
  retryMs?: number
  /** Of more logs that wait for the bucket the oldest are dropped, so that the database doesn't fill up. Default: 10,000. */
  maxBacklog?: number
}

/** Moves the logs of builds that are over from the queue into the home bucket. Runs on the leader. */
export class LogKeeper {
  readonly #options: LogKeeperOptions
  readonly #clock: Clock
  readonly #backlog: Gauge
  readonly #kept: Counter
  readonly #dropped: Counter

  constructor(options: LogKeeperOptions) {
    const { metrics, clock = systemClock } = options
    this.#options = options
    this.#clock = clock
    this.#backlog = metrics.gauge('log_backlog_jobs', 'Builds that are over and whose log is not in the bucket yet.')
    this.#kept = metrics.counter('logs_kept_total', 'Logs moved to the bucket.')
    this.#dropped = metrics.counter('logs_dropped_total', 'Logs dropped since too many waited for the bucket.')
  }

  async run(signal: AbortSignal): Promise<void> {
    const { everyMs = 10_000, retryMs = 30_000, log } = this.#options
    while (!signal.aborted) {
      const waitMs = await this.#pass(signal).then(
        () => everyMs,
        (error: unknown) => {
          if (!signal.aborted) log.info({ err: error }, 'logs not moved to the bucket')
          return retryMs
        },
      )
      await this.#clock.sleep(waitMs, signal).catch(() => undefined)
    }
    // The next leader counts.
    this.#backlog.set(0)
  }

  /** Throws when the bucket, or the database, doesn't answer. */
  async #pass(signal: AbortSignal): Promise<void> {
    const jobs = await this.#withinLimit(await this.#waiting())
    this.#backlog.set(jobs.length)
    if (jobs.length === 0) return
    const store = await this.#options.homeStore()
    for (const job of jobs) {
      signal.throwIfAborted()
      if (await this.#move(job, store, signal)) this.#kept.inc()
      this.#backlog.dec()
    }
  }

  async #waiting(): Promise<OverJob[]> {
    const all: OverJob[] = []
    let page = await overWithLog(this.#options.database, 0)
    while (page.length > 0) {
      all.push(...page)
      page = await overWithLog(this.#options.database, page.at(-1)?.id ?? 0)
    }
    return all
  }

  async #withinLimit(jobs: OverJob[]): Promise<OverJob[]> {
    const { database, log, maxBacklog = 10_000 } = this.#options
    const excess = jobs.slice(0, Math.max(0, jobs.length - maxBacklog))
    for (const { id } of excess) await dropLog(database, id)
    if (excess.length > 0) log.error({ count: excess.length, maxBacklog }, 'logs dropped, for the bucket takes none')
    this.#dropped.inc(excess.length)
    return jobs.slice(excess.length)
  }

  /** One log that can't be moved doesn't keep back the others. */
  async #move(job: OverJob, store: Store, signal: AbortSignal): Promise<boolean> {
    const { database, log } = this.#options
    try {
      return await moveLog({ database, store, signal }, job)
    } catch (error) {
      const isOfAll = error instanceof ShoalError && ['StoreUnreachable', 'Unavailable'].includes(error.code)
      if (signal.aborted || isOfAll) throw error
      log.error({ ...job, err: error }, 'log not moved to the bucket')
      return false
    }
  }
}
