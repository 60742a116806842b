import { BuildJob } from '../../api/buildJob.ts'
import { type Clock, systemClock } from '../../runtime/clock.ts'
import { ApiError, type Cluster } from '../../runtime/cluster.ts'
import type { Logger } from '../../runtime/log.ts'
import type { Metrics } from '../../runtime/metrics.ts'
import type { Reflector } from '../../runtime/reflector.ts'
import { rounds } from '../../runtime/rounds.ts'
import { isFinal } from './status.ts'

/** A job that ended longer ago and has no BuildJob is one somebody deleted, or whose time was over: it gets none anew. */
export const deletedAfterMs = 600_000

export interface FinishedJobsOptions {
  cluster: Cluster
  buildJobs: Reflector<BuildJob>
  /** So long a BuildJob stays in the API after its end. */
  ttlMs: number
  /** No more than so many that have ended stay, however young. */
  limit: number
  log: Logger
  metrics: Metrics
  clock?: Clock
  /** Between two looks. Default: 30 s. */
  everyMs?: number
  /** Between two deletions. Default: 50 ms. */
  paceMs?: number
}

/** Removes BuildJobs that ended long ago from the API; their rows stay. Runs on the leader. */
export class FinishedJobs {
  readonly #options: FinishedJobsOptions
  readonly #clock: Clock

  constructor(options: FinishedJobsOptions) {
    this.#options = options
    this.#clock = options.clock ?? systemClock
  }

  /** What ended before has no object in the API, and is given none: Unix milliseconds. */
  horizonMs(): number {
    const { ttlMs, limit } = this.#options
    const ends = this.#finished().map(({ endedMs }) => endedMs)
    return Math.max(this.#clock.now() - ttlMs, limit > 0 ? (ends[limit - 1] ?? 0) : Number.POSITIVE_INFINITY)
  }

  run(signal: AbortSignal): Promise<void> {
    const { everyMs = 30_000, log } = this.#options
    const failed = (err: unknown) => log.info({ err }, 'finished BuildJobs not removed')
    return rounds(() => this.#pass(signal), { everyMs, clock: this.#clock, signal, failed })
  }

  async #pass(signal: AbortSignal): Promise<void> {
    const { cluster, limit, metrics, paceMs = 50 } = this.#options
    const removed = metrics.counter('buildjobs_removed_total', 'BuildJobs removed from the API after their end.')
    const horizonMs = this.horizonMs()
    const over = this.#finished().filter(({ endedMs }, index) => endedMs < horizonMs || index >= limit)
    for (const { object } of over.reverse()) {
      const { namespace, name, uid = '', resourceVersion = '' } = object.metadata
      try {
        await cluster.within({ signal }).delete(BuildJob, namespace, name, { uid, resourceVersion })
        removed.inc()
      } catch (error) {
        // Somebody changed it just now: next time.
        if (!(error instanceof ApiError && error.status === 409)) throw error
      }
      await this.#clock.sleep(paceMs, signal)
    }
  }

  /** Those that have ended, the last first. */
  #finished(): { object: BuildJob; endedMs: number }[] {
    return this.#options.buildJobs
      .list()
      .filter(({ metadata, status }) => isFinal(status ?? {}) && !metadata.deletionTimestamp)
      .map((object) => ({ object, endedMs: endedAtMs(object) }))
      .sort((a, b) => b.endedMs - a.endedMs)
  }
}

/** One that was made later than the mirror makes them was made by hand, to look at: it stays for its own time. */
function endedAtMs({ status, metadata }: BuildJob): number {
  const finishedMs = Date.parse(status?.finishedAt ?? '') || 0
  const createdMs = Date.parse(metadata.creationTimestamp ?? '') || 0
  return createdMs - finishedMs > deletedAfterMs ? createdMs : finishedMs
}
