import type { Sql, Statement, Transaction } from '../runtime/sql.ts'
import { given, type Job } from './job.ts'

type Placed = Pick<Job, 'id' | 'namespace' | 'pipeline' | 'createdAtMs' | 'priority'>

/**
 * Puts a queued job where it belongs: into `ready` with a slot of its pipeline, or into `blocked` when all are taken.
 * The pipeline's row must be locked (`lockPipeline`), or a slot freed meanwhile would not be seen.
 */
export async function place(sql: Sql, job: Placed, maxJobs: number): Promise<'ready' | 'blocked'> {
  const { namespace, pipeline, id } = job
  const taken = await takenSlots(sql, job)
  if (!taken.some(({ jobId }) => jobId === id)) {
    const [free] = freeSlots(taken, maxJobs)
    if (free === undefined) {
      await sql.execute('UPDATE pipeline SET waits = TRUE WHERE namespace = ? AND name = ?', [namespace, pipeline])
      await sql.execute(
        'INSERT INTO blocked (namespace, pipeline, priority, created_at_ms, job_id) VALUES (?, ?, ?, ?, ?)',
        [namespace, pipeline, -job.priority, job.createdAtMs, id],
      )
      return 'blocked'
    }
    const own = [namespace, pipeline, free, id, id]
    await sql.execute('INSERT INTO slot (namespace, pipeline, slot, job_id, poll_id) VALUES (?, ?, ?, ?, ?)', own)
  }
  await sql.execute('INSERT INTO ready VALUES (?, ?, ?)', [-job.priority, job.createdAtMs, id])
  return 'ready'
}

interface TakenSlot {
  slot: number
  jobId: number
}

/** Index: PRIMARY (namespace, pipeline, slot). */
function takenSlots(sql: Sql, { namespace, pipeline }: Pick<Job, 'namespace' | 'pipeline'>): Promise<TakenSlot[]> {
  return sql.query('SELECT slot, job_id AS jobId FROM slot WHERE namespace = ? AND pipeline = ? ORDER BY slot', [
    namespace,
    pipeline,
  ])
}

function freeSlots(taken: TakenSlot[], maxJobs: number): number[] {
  const used = new Set(taken.map(({ slot }) => slot))
  return Array.from({ length: maxJobs }, (_, slot) => slot).filter((slot) => !used.has(slot))
}

/** Locks the pipeline's row; its concurrency.max. */
export async function lockPipeline(sql: Sql, job: Pick<Job, 'namespace' | 'pipeline'>): Promise<number> {
  const [row] = await sql.query<{ maxJobs: number }>(
    'SELECT max_jobs AS maxJobs FROM pipeline WHERE namespace = ? AND name = ? FOR UPDATE',
    [job.namespace, job.pipeline],
  )
  return row?.maxJobs ?? 1
}

/** A pipeline whose row is locked. */
export interface LockedPipeline {
  namespace: string
  pipeline: string
  maxJobs: number
  /** Some of its jobs may wait for a slot. */
  waits: number
}

/** Locks the jobs' pipelines, in the order of their names; each as a LockedPipeline. */
export const pipelinesLocked = (jobIds: number[]): Statement => [
  // Index: PRIMARY of job and of pipeline; MariaDB would rather read all of by_pipeline, since that is in order. The limit
  // has the order kept; it is no limit.
  `SELECT pipeline.namespace, pipeline.name AS pipeline, max_jobs AS maxJobs, waits
   FROM (SELECT DISTINCT namespace, pipeline FROM job FORCE INDEX (PRIMARY) WHERE id IN (?)
         ORDER BY namespace, pipeline LIMIT 100000) AS theirs
   STRAIGHT_JOIN pipeline ON pipeline.namespace = theirs.namespace AND pipeline.name = theirs.pipeline FOR UPDATE`,
  [jobIds],
]

/** Frees the slots of jobs that are over, and with them their leases. Index: by_job. */
export const slotsFreed = (jobIds: number[]): Statement => ['DELETE FROM slot WHERE job_id IN (?)', [jobIds]]

/** Frees the slot of a job that is over, for the next of its pipeline. */
export async function release(sql: Transaction, { id }: Pick<Job, 'id'>): Promise<void> {
  const [pipelines = []] = await sql.all([pipelinesLocked([id]), slotsFreed([id])])
  for (const pipeline of pipelines) await promote(sql, pipeline as unknown as LockedPipeline)
}

/** Gives a pipeline's free slots to its jobs that wait, first come first. */
export async function promote(sql: Sql, { namespace, pipeline, maxJobs, waits }: LockedPipeline): Promise<void> {
  if (!waits) return
  const waiting = await sql.query<{ priority: number; created_at_ms: number; job_id: number }>(
    // Index: PRIMARY (namespace, pipeline, priority, created_at_ms, job_id).
    `SELECT priority, created_at_ms, job_id FROM blocked
     WHERE namespace = ? AND pipeline = ? ORDER BY priority, created_at_ms, job_id LIMIT ?`,
    [namespace, pipeline, maxJobs],
  )
  if (waiting.length === 0) {
    await sql.execute('UPDATE pipeline SET waits = FALSE WHERE namespace = ? AND name = ?', [namespace, pipeline])
    return
  }
  const free = freeSlots(await takenSlots(sql, { namespace, pipeline }), maxJobs)
  const next = waiting.slice(0, free.length)
  if (next.length === 0) return
  const keys = given(
    ['priority', 'created_at_ms', 'job_id'],
    next.map((row) => ({ ...row })),
  )
  await sql.execute(
    `DELETE blocked FROM ${keys.table} STRAIGHT_JOIN blocked ON blocked.namespace = ? AND blocked.pipeline = ?
       AND blocked.priority = given.priority AND blocked.created_at_ms = given.created_at_ms AND blocked.job_id = given.job_id`,
    [keys.value, namespace, pipeline],
  )
  await sql.execute('INSERT INTO slot (namespace, pipeline, slot, job_id, poll_id) VALUES ?', [
    next.map(({ job_id }, i) => [namespace, pipeline, free[i] ?? 0, job_id, job_id]),
  ])
  await sql.execute('INSERT INTO ready (priority, created_at_ms, job_id) VALUES ?', [
    next.map((row) => [row.priority, row.created_at_ms, row.job_id]),
  ])
}

/** Takes a queued job out of the line, wherever it stands in it. */
export async function unplace(sql: Sql, job: Placed): Promise<void> {
  const { namespace, pipeline, createdAtMs, id } = job
  await sql.execute('DELETE FROM ready WHERE priority = ? AND created_at_ms = ? AND job_id = ?', [
    -job.priority,
    createdAtMs,
    id,
  ])
  await sql.execute(
    'DELETE FROM blocked WHERE namespace = ? AND pipeline = ? AND priority = ? AND created_at_ms = ? AND job_id = ?',
    [namespace, pipeline, -job.priority, createdAtMs, id],
  )
}
