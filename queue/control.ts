import type { Database, Sql, Transaction } from '../runtime/sql.ts'
import { end } from './end.ts'
import { type Job, lockJob, lockJobs, nowMs, selectJobs } from './job.ts'
import { lockPipeline, place, unplace } from './slots.ts'

/** Ends a queued job at once, and has a running one told at its next heartbeat. A finished one stays as it is. */
export async function cancel(database: Database, jobId: number): Promise<void> {
  await database.transaction((sql) => cancelAll(sql, [jobId], 'cancelled while it was queued'))
}

/** As `cancel`, of several; `message` says why to those that did not begin. */
export async function cancelAll(sql: Transaction, jobIds: number[], message: string): Promise<void> {
  const jobs = (await lockJobs(sql, jobIds)).filter((job) => !job.cancel)
  if (jobs.length === 0) return
  await sql.execute(`UPDATE job SET cancel = TRUE, updated_at_ms = ${nowMs} WHERE id IN (?)`, [
    jobs.map(({ id }) => id),
  ])
  for (const job of jobs) {
    if (job.phase !== 'Queued') continue
    await unplace(sql, job)
    await end(sql, job, { phase: 'Cancelled', code: 'Cancelled', message })
  }
}

/** Moves a queued job to its place among those of another priority. */
export async function setPriority(database: Database, jobId: number, priority: number): Promise<void> {
  await database.transaction(async (sql) => {
    const job = await lockJob(sql, jobId)
    if (!job || job.priority === priority) return
    if (job.phase === 'Queued') await unplace(sql, job)
    await sql.execute(`UPDATE job SET priority = ?, updated_at_ms = ${nowMs} WHERE id = ?`, [-priority, jobId])
    if (job.phase === 'Queued') await place(sql, { ...job, priority }, await lockPipeline(sql, job))
  })
}

/** The artifact is wherever it must be. Does nothing when the job is Succeeded already. */
export async function markSucceeded(database: Database, jobId: number): Promise<void> {
  await database.transaction(
    async (sql) => {
      await sql.all([
        [
          `UPDATE job SET phase = 'Succeeded', finished_at_ms = ${nowMs}, updated_at_ms = ${nowMs}
           WHERE id = ? AND phase = 'Replicating'`,
          [jobId],
        ],
        ['DELETE FROM replicating WHERE job_id = ?', [jobId]],
      ])
    },
    { idempotent: true },
  )
}

/** Shows how far the replication is, as `3/5`. */
export async function setReplicated(database: Database, jobId: number, replicated: string): Promise<void> {
  await database.execute(
    `UPDATE job SET replicated = ?, updated_at_ms = ${nowMs} WHERE id = ? AND NOT replicated <=> ?`,
    [replicated, jobId, replicated],
  )
}

/** Jobs that changed at or after a moment, oldest change first, at most 1,000. Index: by_update. */
export function changedSince(database: Database, since: { ms: number; afterId: number }): Promise<Job[]> {
  const { ms, afterId } = since
  const later = 'updated_at_ms >= ? AND (updated_at_ms > ? OR job.id > ?) ORDER BY updated_at_ms, job.id LIMIT 1000'
  return selectJobs(database, later, [ms, ms, afterId])
}

/** Jobs that are built and not yet everywhere, first come first, at most 10,000. Index: PRIMARY of replicating and job. */
export async function replicating(database: Database): Promise<Job[]> {
  const rows = await database.query<{ id: number }>('SELECT job_id AS id FROM replicating ORDER BY job_id LIMIT 10000')
  return findJobs(
    database,
    rows.map(({ id }) => id),
  )
}

/** The job of a BuildJob. Index: by_name. */
export async function findJob(database: Database, namespace: string, name: string): Promise<Job | undefined> {
  const [job] = await selectJobs(database, 'job.namespace = ? AND name = ?', [namespace, name])
  return job
}

/** The latest job of a commit. Index: by_commit. */
export async function jobOfCommit(
  sql: Sql,
  { namespace, pipeline, commit }: Pick<Job, 'namespace' | 'pipeline' | 'commit'>,
): Promise<Job | undefined> {
  const where = 'job.namespace = ? AND job.pipeline = ? AND commit_id = ? ORDER BY n DESC LIMIT 1'
  return (await selectJobs(sql, where, [namespace, pipeline, commit]))[0]
}

/** Jobs by their ids. Index: PRIMARY. */
export async function findJobs(sql: Sql, ids: number[]): Promise<Job[]> {
  return ids.length === 0 ? [] : selectJobs(sql, 'job.id IN (?) ORDER BY job.id', [ids])
}

/** The places of the first `limit` in line, from 1, by `namespace/name`. Index: PRIMARY of ready and of job. */
export async function positions(database: Database, limit: number): Promise<Map<string, number>> {
  const rows = await database.query<{ namespace: string; name: string }>(
    `SELECT job.namespace, job.name FROM ready JOIN job ON job.id = ready.job_id
     ORDER BY ready.priority, ready.created_at_ms, ready.job_id LIMIT ?`,
    [limit],
  )
  return new Map(rows.map(({ namespace, name }, index) => [`${namespace}/${name}`, index + 1]))
}
