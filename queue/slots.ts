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
      await sql.execute(
        'INSERT INTO blocked (namespace, pipeline, priority, created_at_ms, job_id) VALUES (?, ?, ?, ?, ?)',
        [namespace, pipeline, -job.priority, job.createdAtMs, id],
      )
      return 'blocked'
    }
    const own = [namespace, pipeline, free, id]
    await sql.execute('INSERT INTO slot (namespace, pipeline, slot, job_id) VALUES (?, ?, ?, ?)', own)
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

/**
 * Frees the slots of jobs that are over, and with them their leases, after what `first` does, and gives them to those of
 * their pipelines that wait. Locks the pipelines' rows, in the order of their names.
 */
export async function release(sql: Transaction, jobs: Placed[], first: Statement[] = []): Promise<void> {
  if (jobs.length === 0) return
  const pipelines = pipelinesOf(jobs)
  const one = '(pipeline.namespace = ? AND name = ?)'
  const theirs = `FROM pipeline WHERE (${pipelines.map(() => one).join(' OR ')})`
  const values = pipelines.flatMap(({ namespace, pipeline }) => [namespace, pipeline])
  const answers = await sql.all([
    ...first,
    // Not joined with given rows: MySQL would lock those too, and refuses to.
    [`SELECT name ${theirs} ORDER BY namespace, name FOR UPDATE`, values],
    // Index: by_job.
    ['DELETE FROM slot WHERE job_id IN (?)', [jobs.map(({ id }) => id)]],
    // Index: PRIMARY of both, one look each. Not EXISTS, which the server may turn into a join over all that wait.
    [
      `SELECT pipeline.namespace, name AS pipeline, max_jobs AS maxJobs ${theirs} AND 1 =
         (SELECT 1 FROM blocked WHERE blocked.namespace = pipeline.namespace AND blocked.pipeline = name LIMIT 1)`,
      values,
    ],
  ])
  for (const row of answers.at(-1) ?? [])
    await promote(sql, row as { namespace: string; pipeline: string; maxJobs: number })
}

/** Each once. */
function pipelinesOf(jobs: Placed[]): { namespace: string; pipeline: string }[] {
  const byName = new Map(jobs.map(({ namespace, pipeline }) => [`${namespace}/${pipeline}`, { namespace, pipeline }]))
  return [...byName.values()]
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
  const keys = given(
    ['priority', 'created_at_ms', 'job_id'],
    next.map((row) => ({ ...row })),
  )
  await sql.execute(
    `DELETE blocked FROM ${keys.table} STRAIGHT_JOIN blocked ON blocked.namespace = ? AND blocked.pipeline = ?
       AND blocked.priority = given.priority AND blocked.created_at_ms = given.created_at_ms AND blocked.job_id = given.job_id`,
    [keys.value, namespace, pipeline],
  )
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
