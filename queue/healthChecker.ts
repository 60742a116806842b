import type { ProbeAnswer } from '../api/workerApi.ts'
import { type Clock, systemClock } from '../runtime/clock.ts'
import type { Logger } from '../runtime/log.ts'
import type { Gauge, Metrics } from '../runtime/metrics.ts'
import { rounds } from '../runtime/rounds.ts'
import type { Database } from '../runtime/sql.ts'
import { nowMs } from './job.ts'
import { heartbeatMany, type LeaseRow, leases as readLeases, requeueLost } from './lease.ts'
import { probeWorker } from './probe.ts'
import { forget } from './workers.ts'

export interface HealthCheckerOptions {
  database: Database
  log: Logger
  metrics: Metrics
  clock?: Clock
  /** What a worker says it holds. Throws when it doesn't answer. Default: asks it over HTTP. */
  probe?: (worker: { name: string; probeUrl: string; probeSecret: string }, signal: AbortSignal) => Promise<ProbeAnswer>
  leaseMs: number
  /** Between two rounds. Default: 5 s. */
  intervalMs?: number
  /** Silence that is an alarm. Default: 30 min. */
  alarmMs?: number
  /** A job went back to the queue, or failed as WorkerLost. */
  onLost?: (jobId: number) => void
}

interface WorkerRow {
  name: string
  probeUrl: string
  probeSecret: string
  lastSeenMs: number
}

/** Workers that hold nothing and were silent so long are forgotten. */
const forgetMs = 24 * 3_600_000
const probeTimeoutMs = 3000
/** Leases prolonged in one statement: 2,000 take 9 ms. */
const maxBatch = 1000

/**
 * Asks every worker what it holds, writes `last_seen`, and takes jobs from workers that lost them:
 *
 *  - at once, when a worker answers without the job, has processed the answer of the poll that claimed it, and the
 *    probe began after the claim;
 *  - otherwise, when neither heartbeat nor probe showed the job for a whole lease through which this checker and the
 *    database were up. A round that failed, came late or waited for the database starts that time anew: after an outage
 *    nobody is dead.
 *
 * For the same reason nobody is called silent before a whole lease without an outage: a worker that could not be heard
 * asks for a job in that time.
 */
export class HealthChecker {
  readonly #options: HealthCheckerOptions
  readonly #clock: Clock
  /** When each lease was last known good: by its token, on this process' monotonic clock. */
  #watched = new Map<string, { seenAtMs: number; since: number }>()
  /** When leases were last judged. */
  #lastRound: number | undefined
  /** Since when every round was in time. */
  #upSince = 0
  #silent: string[] | undefined

  readonly #gauge: Gauge

  constructor(options: HealthCheckerOptions) {
    this.#options = options
    this.#clock = options.clock ?? systemClock
    this.#gauge = options.metrics.gauge('silent_workers', 'Workers silent for longer than the alarm threshold.')
  }

  /** Names of workers that were silent for longer than `alarmMs` at the last round; undefined while that isn't known. */
  get silent(): string[] | undefined {
    return this.#silent
  }

  async run(signal: AbortSignal): Promise<void> {
    const { intervalMs = 5000, log } = this.#options
    this.#lastRound = undefined
    this.#watched.clear()
    const failed = (err: unknown) => {
      this.#lastRound = undefined
      this.#silent = undefined
      log.error({ err }, 'health check failed')
    }
    await rounds(() => this.round(signal), { everyMs: intervalMs, clock: this.#clock, signal, failed })
    this.#silent = undefined
    // Who leads next says it.
    this.#gauge.remove()
  }

  /** One round over all workers and leases. */
  async round(signal: AbortSignal): Promise<void> {
    const { database, leaseMs, intervalMs = 5000 } = this.#options
    const began = this.#clock.monotonic()
    // This process slept, or the database did not answer: what was watched before says nothing.
    // A third of a lease is one heartbeat: less than that can't hide that a worker is there.
    const slackMs = leaseMs / 3
    if (this.#lastRound === undefined || began - this.#lastRound > intervalMs + slackMs) this.#begin(began)
    const probedAtMs = await database.now()
    const workers = await database.query<WorkerRow>(
      'SELECT name, probe_url AS probeUrl, probe_secret AS probeSecret, last_seen_ms AS lastSeenMs FROM worker',
    )
    const asked = this.#clock.monotonic()
    const answers = await this.#probeAll(workers, signal)
    const answered = this.#clock.monotonic()
    await this.#seen([...answers.keys()])
    const leases = await readLeases(database)
    // One moment for all: while one lease is written, the next doesn't grow older.
    const now = this.#clock.monotonic()
    if (asked - began + now - answered > slackMs) this.#begin(now)
    this.#lastRound = now
    const rest = await this.#renew(leases, answers, now)
    for (const lease of rest) await this.#judge(lease, answers.get(lease.worker), { probedAtMs, now })
    const tokens = new Set(leases.map(({ token }) => token))
    for (const token of this.#watched.keys()) if (!tokens.has(token)) this.#watched.delete(token)
    await this.#lookForSilent(workers, answers)
  }

  /** What was seen before this moment of the monotonic clock says nothing. */
  #begin(at: number): void {
    this.#watched.clear()
    this.#upSince = at
  }

  async #probeAll(workers: WorkerRow[], signal: AbortSignal): Promise<Map<string, ProbeAnswer>> {
    const { probe = probeWorker } = this.#options
    const answers = new Map<string, ProbeAnswer>()
    const lanes = Array.from({ length: 32 }, async (_, lane) => {
      for (let index = lane; index < workers.length; index += 32) {
        const worker = workers[index]
        if (!worker) continue
        try {
          const timeout = AbortSignal.any([signal, AbortSignal.timeout(probeTimeoutMs)])
          const answer = await probe(worker, timeout)
          if (answer.worker === worker.name) answers.set(worker.name, answer)
        } catch {
          // It did not answer; how long it may stay so is decided by its leases.
        }
      }
    })
    await Promise.all(lanes)
    return answers
  }

  async #seen(names: string[]): Promise<void> {
    if (names.length === 0) return
    await this.#options.database.execute(`UPDATE worker SET last_seen_ms = ${nowMs} WHERE name IN (?)`, [names])
  }

  /** Prolongs the leases that their workers hold; gives those that they don't. */
  async #renew(leases: LeaseRow[], answers: Map<string, ProbeAnswer>, now: number): Promise<LeaseRow[]> {
    const held = new Set([...answers.values()].flatMap((answer) => answer.held.map(({ token }) => token)))
    const shown = leases.filter(({ token }) => held.has(token))
    for (const { token, seenAtMs } of shown) this.#watched.set(token, { seenAtMs, since: now })
    for (let i = 0; i < shown.length; i += maxBatch)
      await heartbeatMany(this.#options.database, shown.slice(i, i + maxBatch))
    return leases.filter(({ token }) => !held.has(token))
  }

  async #judge(
    lease: LeaseRow,
    answer: ProbeAnswer | undefined,
    { probedAtMs, now }: { probedAtMs: number; now: number },
  ): Promise<void> {
    const { leaseMs } = this.#options
    if (answer && lease.pollId <= answer.lastPollId && lease.claimedAtMs < probedAtMs) {
      await this.#lost(lease, 'the worker does not hold it')
      return
    }
    const watched = this.#watched.get(lease.token)
    if (!watched || watched.seenAtMs !== lease.seenAtMs) {
      this.#watched.set(lease.token, { seenAtMs: lease.seenAtMs, since: now })
    } else if (now - watched.since > leaseMs) await this.#lost(lease, 'silent for a whole lease')
  }

  async #lost(lease: LeaseRow, why: string): Promise<void> {
    const { database, log, metrics, onLost } = this.#options
    const outcome = await requeueLost(database, lease)
    if (outcome === 'gone') return
    metrics.counter('lost_workers_total', 'Jobs taken from a worker that was lost.').inc()
    log.info({ jobId: lease.jobId, worker: lease.worker, why, outcome }, 'job taken from a lost worker')
    onLost?.(lease.jobId)
  }

  async #lookForSilent(workers: WorkerRow[], answers: Map<string, ProbeAnswer>): Promise<void> {
    const { alarmMs = 1_800_000, database, leaseMs } = this.#options
    const now = await database.now()
    const silentMs = ({ name, lastSeenMs }: WorkerRow) => (answers.has(name) ? 0 : now - lastSeenMs)
    const dead = workers.filter((worker) => silentMs(worker) > forgetMs).map(({ name }) => name)
    const forgotten = new Set(await forget(database, dead))
    if (this.#clock.monotonic() - this.#upSince < leaseMs) {
      this.#silent = undefined
      return
    }
    const silent = workers.filter((worker) => silentMs(worker) > alarmMs && !forgotten.has(worker.name))
    this.#silent = silent.map(({ name }) => name)
    this.#gauge.set(silent.length)
  }
}
