import { finalPhases } from '../api/buildJob.ts'
import type { Database, Sql, Transaction } from '../runtime/sql.ts'
import { end } from './end.ts'
import { changed, type Job, lockJob, lockJobs, nowMs, selectJobs } from './job.ts'
import { lockPipeline, place, unplace } from './slots.ts'

/** Ends a queued job at once, and has a running one told at its next heartbeat. A finished one stays as it is. */
export async function cancel(database: Database, jobId: number): Promise<void> {
  await database.transaction((sql) => cancelAll(sql, [jobId], 'cancelled while it was queued'))
}

/** As `cancel`, of several; `message` says why to those that did not begin. */
export async function cancelAll(sql: Transaction, jobIds: number[], message: string): Promise<void> {
  const jobs = (await lockJobs(sql, jobIds)).filter((job) => !job.cancel)
  if (jobs.length === 0) return
  await sql.execute(`UPDATE job SET cancel = TRUE, ${changed} WHERE id IN (?)`, [jobs.map(({ id }) => id)])
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
    await sql.execute(`UPDATE job SET priority = ?, ${changed} WHERE id = ?`, [-priority, jobId])
    if (job.phase === 'Queued') await place(sql, { ...job, priority }, await lockPipeline(sql, job))
  })
}

/** The artifact is wherever it must be. Does nothing when the job is Succeeded already. Index: PRIMARY of outcome. */
export async function markSucceeded(database: Database, jobId: number): Promise<void> {
  await database.execute(
    `UPDATE outcome SET phase = 'Succeeded', finished_at_ms = ${nowMs}, ${changed}
     WHERE job_id = ? AND phase = 'Replicating'`,
    [jobId],
  )
}

/** Shows how far the replication is, as `3/5`. Index: PRIMARY of outcome. */
export async function setReplicated(database: Database, jobId: number, replicated: string): Promise<void> {
  await database.execute(`UPDATE outcome SET replicated = ?, ${changed} WHERE job_id = ? AND NOT replicated <=> ?`, [
    replicated,
    jobId,
    replicated,
  ])
}

/** The last change of a row: when, of which job, and which of its rows. */
export interface Change {
  ms: number
  jobId: number
  rowId: number
}

const phases = ['Replicating', ...finalPhases]

/**
 * Changes behind a given one, oldest first, at most 1,000 at once: of a job before it was over, the last; of its outcome,
 * the last. Claims are none of them. Index: by_update of job, by_phase of outcome.
 */
export async function changesAfter(database: Database, { ms, rowId }: Pick<Change, 'ms' | 'rowId'>): Promise<Change[]> {
  const from = (rows: string, jobId: string, rowId: string) =>
    `(SELECT updated_at_ms AS ms, ${jobId} AS jobId, ${rowId} AS rowId FROM ${rows} updated_at_ms >= ?
      AND (updated_at_ms > ? OR ${rowId} > ?) ORDER BY updated_at_ms, ${jobId} LIMIT 1000)`
  const sources = [
    from('job WHERE', 'id', '2 * id'),
    ...phases.map((phase) => from(`outcome WHERE phase = '${phase}' AND`, 'job_id', '2 * job_id + 1')),
  ]
  return database.query<Change & Record<string, unknown>>(
    `SELECT ms, jobId, rowId FROM (${sources.join(' UNION ALL ')}) changes ORDER BY ms, rowId LIMIT 1000`,
    sources.flatMap(() => [ms, ms, rowId]),
  )
}

/** Jobs that are built and not yet everywhere, first come first, at most 10,000. Index: by_phase, PRIMARY of job. */
export async function replicating(database: Database): Promise<Job[]> {
  const rows = await database.query<{ id: number }>(
    "SELECT job_id AS id FROM outcome WHERE phase = 'Replicating' ORDER BY job_id LIMIT 10000",
  )
  return findJobs(
    database,
    rows.map(({ id }) => id),
  )
}

/** The job of a BuildJob. Index: by_name. */
export async function findJob(database: Database, namespace: string, name: string): Promise<Job | undefined> {
  const [job] = await selectJobs(database, 'job.namespace = ? AND job.name = ?', [namespace, name])
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

/**
 * The commit of a ref that was queued last, when it is among the pipeline's last 1,000. Index: by_pipeline, whose order it
 * is; PRIMARY.
 */
export async function lastOfRef(
  sql: Sql,
  { namespace, pipeline, ref }: Pick<Job, 'namespace' | 'pipeline' | 'ref'>,
): Promise<string | undefined> {
  const [job] = await sql.query<{ commit: string }>(
    `SELECT commit_id AS \`commit\` FROM
       (SELECT id, ref, commit_id FROM job FORCE INDEX (by_pipeline) WHERE namespace = ? AND pipeline = ?
        ORDER BY id DESC LIMIT 1000) AS latest
     WHERE ref = ? ORDER BY id DESC LIMIT 1`,
    [namespace, pipeline, ref],
  )
  return job?.commit
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
