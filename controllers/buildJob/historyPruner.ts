import type { Store } from '../../artifacts/store.ts'
import { deleteJobs, jobsAfter } from '../../queue/history.ts'
import type { Job } from '../../queue/job.ts'
import { keptObjects } from '../../queue/keptLog.ts'
import { type Clock, systemClock } from '../../runtime/clock.ts'
import type { Logger } from '../../runtime/log.ts'
import type { Metrics } from '../../runtime/metrics.ts'
import { rounds } from '../../runtime/rounds.ts'
import type { Database } from '../../runtime/sql.ts'
import { isFinal } from './status.ts'

export interface HistoryPrunerOptions {
  database: Database
  homeStore: () => Promise<Store>
  /** So long a job's row stays after its end. */
  historyMs: number
  /** Whether a job that is that old stays all the same: its artifact is there, or its commit would be built again. */
  isNeeded: (job: Job) => boolean
  log: Logger
  metrics: Metrics
  clock?: Clock
  /** Between two rounds. Default: 1 h. */
  everyMs?: number
  /** Between two batches. Default: 100 ms. */
  paceMs?: number
}

const batchRows = 200

/** Forgets jobs that ended long ago, with their logs. Runs on the leader. */
export class HistoryPruner {
  readonly #options: HistoryPrunerOptions
  readonly #clock: Clock

  constructor(options: HistoryPrunerOptions) {
    this.#options = options
    this.#clock = options.clock ?? systemClock
  }

  run(signal: AbortSignal): Promise<void> {
    const { everyMs = 3_600_000, log } = this.#options
    const failed = (err: unknown) => log.info({ err }, 'history not pruned')
    return rounds(() => this.#round(signal), { everyMs, clock: this.#clock, signal, failed })
  }

  /** From the oldest row on, as far as rows may be old enough. */
  async #round(signal: AbortSignal): Promise<void> {
    const { database, historyMs, isNeeded, metrics, paceMs = 100 } = this.#options
    const pruned = metrics.counter('jobs_pruned_total', 'Jobs whose row was removed by age.')
    const untilMs = (await database.now()) - historyMs
    let jobs = await jobsAfter(database, 0, batchRows)
    while (jobs.length > 0) {
      const old = jobs
        .filter((job) => isFinal(job) && (job.finishedAtMs ?? untilMs) < untilMs && !isNeeded(job))
        .map(({ id }) => id)
      await this.#removeLogs(old)
      if (old.length > 0) pruned.inc(await deleteJobs(database, old))
      const last = jobs.at(-1)
      if (!last || last.createdAtMs >= untilMs) return
      await this.#clock.sleep(paceMs, signal)
      jobs = await jobsAfter(database, last.id, batchRows)
    }
  }

  /** The objects first: the rows are what knows of them. */
  async #removeLogs(jobIds: number[]): Promise<void> {
    const keys = await keptObjects(this.#options.database, jobIds)
    if (keys.length === 0) return
    const store = await this.#options.homeStore()
    for (const key of keys) await store.delete(key)
  }
}
