import type { Sql } from '../runtime/sql.ts'
import type { Job } from './job.ts'

type Placed = Pick<Job, 'id' | 'namespace' | 'pipeline' | 'createdAtMs' | 'priority'>

/**
 * Puts a queued job where it belongs: into `ready` with a slot of its pipeline, or into `blocked` when all are taken.
 * The pipeline's row must be locked (`lockPipeline`), or a slot freed meanwhile would not be seen.
 */
export async function place(sql: Sql, job: Placed, maxJobs: number): Promise<'ready' | 'blocked'> {
  const { namespace, pipeline, id } = job
  const taken = await sql.query<{ slot: number; jobId: number }>(
    // Index: PRIMARY (namespace, pipeline, slot).
    'SELECT slot, job_id AS jobId FROM slot WHERE namespace = ? AND pipeline = ? ORDER BY slot',
    [namespace, pipeline],
  )
  const own = taken.some(({ jobId }) => jobId === id)
  const free = Array.from({ length: maxJobs }, (_, slot) => slot).find(
    (slot) => !taken.some((row) => row.slot === slot),
  )
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

/** Locks the pipeline's row; its concurrency.max. */
export async function lockPipeline(sql: Sql, job: Pick<Job, 'namespace' | 'pipeline'>): Promise<number> {
  const [row] = await sql.query<{ maxJobs: number }>(
    'SELECT max_jobs AS maxJobs FROM pipeline WHERE namespace = ? AND name = ? FOR UPDATE',
    [job.namespace, job.pipeline],
  )
  return row?.maxJobs ?? 1
}

/** Frees the job's slot and gives it to the pipeline's next job that waits. Locks the pipeline's row. */
export async function release(sql: Sql, job: Placed): Promise<void> {
  const maxJobs = await lockPipeline(sql, job)
  await sql.execute('DELETE FROM slot WHERE job_id = ?', [job.id])
  for (;;) {
    const [next] = await sql.query<{ priority: number; createdAtMs: number; id: number }>(
      // Index: PRIMARY (namespace, pipeline, priority, created_at_ms, job_id).
      `SELECT priority, created_at_ms AS createdAtMs, job_id AS id FROM blocked
       WHERE namespace = ? AND pipeline = ? ORDER BY priority, created_at_ms, job_id LIMIT 1`,
      [job.namespace, job.pipeline],
    )
    if (!next) return
    await sql.execute(
      'DELETE FROM blocked WHERE namespace = ? AND pipeline = ? AND priority = ? AND created_at_ms = ? AND job_id = ?',
      [job.namespace, job.pipeline, next.priority, next.createdAtMs, next.id],
    )
    const { namespace, pipeline } = job
    const placed = { id: next.id, namespace, pipeline, createdAtMs: next.createdAtMs, priority: -next.priority }
    if ((await place(sql, placed, maxJobs)) === 'blocked') return
  }
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
