import type { Sql } from '../runtime/sql.ts'
import type { QueueLoad } from './autoscale.ts'
import { nowMs } from './job.ts'

/** How full the queue is. */
export interface QueueFigures {
  /** Jobs that only a worker is missing to. */
  ready: number
  /** Jobs that wait for a slot of their pipeline. */
  blocked: number
  running: number
  /** Since the longest waiting of the ready ones was queued. */
  oldestReadyMs: number | undefined
}

/** Jobs that are waiting or running are in small tables of their own: the history doesn't count. Index: PRIMARY of each. */
export async function queueFigures(sql: Sql): Promise<QueueFigures> {
  const [row] = await sql.query<Omit<QueueFigures, 'oldestReadyMs'> & { oldestReadyMs: number | null }>(
    `SELECT (SELECT COUNT(*) FROM ready) AS ready, (SELECT COUNT(*) FROM blocked) AS blocked,
       (SELECT COUNT(*) FROM slot WHERE worker > 0) AS running,
       (SELECT GREATEST(0, ${nowMs} - MIN(created_at_ms)) FROM ready) AS oldestReadyMs`,
  )
  const { ready = 0, blocked = 0, running = 0, oldestReadyMs } = row ?? {}
  return { ready, blocked, running, oldestReadyMs: oldestReadyMs ?? undefined }
}

/** Arrivals are averaged over so long. */
const windowMs = 600_000
/** And over no more of them: 100 a minute is a rate that is known well enough. */
const latestJobs = 1000
/** Builds whose times are averaged: those of them that ended last, */
const latestBuilds = 100
/** of the last queued that are over. */
const latestOver = 400
/** Of builds of which none has ended yet: long, so that each job that waits gets a worker. */
const unknownBuildMs = 300_000

/** How fast jobs come and how long they take. Reads at most the last jobs of each kind, however many there were. */
export async function queueRates(sql: Sql): Promise<Pick<QueueLoad, 'arrivalsPerMs' | 'buildMs'>> {
  return { arrivalsPerMs: await arrivalsPerMs(sql), buildMs: await buildMs(sql) }
}

/** Index: PRIMARY of job, from its end. */
async function arrivalsPerMs(sql: Sql): Promise<number> {
  const [row] = await sql.query<{ jobs: number; spanMs: number | null }>(
    `SELECT COUNT(*) AS jobs, ${nowMs} - MIN(created_at_ms) AS spanMs
     FROM (SELECT created_at_ms FROM job ORDER BY id DESC LIMIT ${latestJobs}) AS latest
     WHERE created_at_ms > ${nowMs} - ${windowMs}`,
  )
  const { jobs = 0, spanMs } = row ?? {}
  return jobs / (jobs < latestJobs ? windowMs : Math.max(1, spanMs ?? windowMs))
}

/** Index: PRIMARY of outcome, from its end; by_poll of slot. */
async function buildMs(sql: Sql): Promise<number> {
  const [row] = await sql.query<{ endedMs: number | null; runningMs: number | null }>(
    `SELECT
       (SELECT AVG(ended - began) FROM
         (SELECT began, ended FROM
           (SELECT started_at_ms AS began, COALESCE(built_at_ms, finished_at_ms) AS ended
            FROM outcome ORDER BY job_id DESC LIMIT ${latestOver}) AS latest_over
          WHERE began IS NOT NULL AND ended IS NOT NULL ORDER BY ended DESC LIMIT ${latestBuilds}) AS latest) AS endedMs,
       (SELECT AVG(${nowMs} - claimed_at_ms) FROM slot WHERE worker > 0) AS runningMs`,
  )
  const { endedMs, runningMs } = row ?? {}
  if (endedMs === undefined || endedMs === null) return unknownBuildMs
  // Builds that take much longer than the last ones did say so while they run, not only when they end.
  return Math.max(0, endedMs, runningMs ?? 0)
}
