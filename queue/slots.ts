import type { Sql, Statement, Transaction } from '../runtime/sql.ts'
import { byKeys, type Job } from './job.ts'

type Placed = Pick<Job, 'id' | 'namespace' | 'pipeline' | 'createdAtMs' | 'priority'>

/**
 * Puts a queued job where it belongs: into `ready` with a slot of its pipeline, or into `blocked` when all are taken.
 * The pipeline's row must be locked (`lockPipeline`), or a slot freed meanwhile would not be seen.
 */
export async function place(sql: Sql, job: Placed, maxJobs: number): Promise<'ready' | 'blocked'> {
  const { namespace, pipeline, id } = job
  const taken = await takenSlots(sql, job)
  const own = taken.some(({ jobId }) => jobId === id)
  const [free] = freeSlots(taken, maxJobs)
  if (!own && free === undefined) {
    await sql.execute(
      'INSERT INTO blocked (namespace, pipeline, priority, created_at_ms, job_id) VALUES (?, ?, ?, ?, ?)',
      [namespace, pipeline, -job.priority, job.createdAtMs, id],
    )
    return 'blocked'
  }
  if (!own) await sql.execute('INSERT INTO slot VALUES (?, ?, ?, ?)', [namespace, pipeline, free ?? 0, id])
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

/** Locks the jobs' pipelines, in the order of their names. */
export function pipelinesLocked(jobs: Pick<Job, 'namespace' | 'pipeline'>[]): Statement {
  const { where, values } = pipelineKeys(jobs)
  return [`SELECT name FROM pipeline WHERE ${where} ORDER BY namespace, name FOR UPDATE`, values]
}

function pipelineKeys(jobs: Pick<Job, 'namespace' | 'pipeline'>[]) {
  const keys = new Map(jobs.map((job) => [pipelineOf(job), { namespace: job.namespace, name: job.pipeline }]))
  return byKeys(['namespace', 'name'], [...keys.values()])
}

const pipelineOf = ({ namespace, pipeline }: Pick<Job, 'namespace' | 'pipeline'>) => `${namespace}/${pipeline}`

/** Frees the jobs' slots and gives them to those of their pipelines that wait. Locks the pipelines' rows. */
export async function release(sql: Transaction, jobs: Placed[]): Promise<void> {
  if (jobs.length === 0) return
  const keys = pipelineKeys(jobs)
  const [, , waited] = await sql.all([
    pipelinesLocked(jobs),
    // Index: by_job.
    ['DELETE FROM slot WHERE job_id IN (?)', [jobs.map(({ id }) => id)]],
    // Index: PRIMARY of both, one look each. Not EXISTS, which the server may turn into a join over all that wait.
    [
      `SELECT namespace, name AS pipeline, max_jobs AS maxJobs FROM pipeline WHERE (${keys.where}) AND 1 =
         (SELECT 1 FROM blocked WHERE blocked.namespace = pipeline.namespace AND blocked.pipeline = pipeline.name LIMIT 1)`,
      keys.values,
    ],
  ])
  for (const row of waited ?? []) await promote(sql, row as { namespace: string; pipeline: string; maxJobs: number })
}

/** Gives a pipeline's free slots to its jobs that wait, first come first. */
async function promote(sql: Sql, of: { namespace: string; pipeline: string; maxJobs: number }): Promise<void> {
  const { namespace, pipeline, maxJobs } = of
  const waiting = await sql.query<{ priority: number; created_at_ms: number; job_id: number }>(
    // Index: PRIMARY (namespace, pipeline, priority, created_at_ms, job_id).
    `SELECT priority, created_at_ms, job_id FROM blocked
     WHERE namespace = ? AND pipeline = ? ORDER BY priority, created_at_ms, job_id LIMIT ?`,
    [namespace, pipeline, maxJobs],
  )
  if (waiting.length === 0) return
  const free = freeSlots(await takenSlots(sql, { namespace, pipeline }), maxJobs)
  const next = waiting.slice(0, free.length)
  if (next.length === 0) return
  const { where, values } = byKeys(
    ['namespace', 'pipeline', 'priority', 'created_at_ms', 'job_id'],
    next.map((row) => ({ namespace, pipeline, ...row })),
  )
  await sql.execute(`DELETE FROM blocked WHERE ${where}`, values)
  await sql.execute('INSERT INTO slot (namespace, pipeline, slot, job_id) VALUES ?', [
    next.map(({ job_id }, i) => [namespace, pipeline, free[i] ?? 0, job_id]),
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
