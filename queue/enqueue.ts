import type { Database, Sql } from '../runtime/sql.ts'
import { cancelAll, jobOfCommit } from './control.ts'
import { type LockedJob, lockJob, nowMs, selectJobs } from './job.ts'
import { lockPipeline, place } from './slots.ts'

export interface NewJob {
  namespace: string
  pipeline: string
  commit: string
  ref: string
  priority?: number
  /** The pipeline's concurrency.max. */
  maxJobs: number
  /** Of a BuildJob made by hand; by default pipeline-<commit, 12 hex>. */
  name?: string
  /** Build the commit once more, as …-2 and so on. */
  rebuild?: boolean
  /** What the pipeline's earlier jobs of the same ref still do is ended: a newer commit makes it pointless. */
  cancelOlder?: boolean
}

/** Puts a commit into the queue. The same commit of the same pipeline is one job, however often it is pushed. */
export async function enqueue(database: Database, job: NewJob): Promise<{ job: LockedJob; created: boolean }> {
  return database.transaction(
    async (sql) => {
      await sql.execute(
        'INSERT INTO pipeline (namespace, name, max_jobs) VALUES (?, ?, ?) ON DUPLICATE KEY UPDATE max_jobs = VALUES(max_jobs)',
        [job.namespace, job.pipeline, job.maxJobs],
      )
      // From here on, jobs of this pipeline are queued one after the other.
      const maxJobs = await lockPipeline(sql, job)
      const last = await jobOfCommit(sql, job)
      if (last && job.name !== undefined && job.name !== last.name) {
        const [named] = await selectJobs(sql, 'job.namespace = ? AND job.name = ?', [job.namespace, job.name])
        if (named) return { job: named, created: false }
      } else if (last && !job.rebuild) return { job: last, created: false }
      const n = last ? rebuildNumber(last.name, job) + 1 : 1
      const name = job.name ?? (await nameFor(sql, job, n))
      const { insertId } = await sql.execute(
        `INSERT INTO job (namespace, pipeline, commit_id, n, name, ref, priority, created_at_ms, updated_at_ms)
         VALUES (?, ?, ?, ?, ?, ?, ?, ${nowMs}, ${nowMs})`,
        [job.namespace, job.pipeline, job.commit, n, name, job.ref.slice(0, 512), -(job.priority ?? 0)],
      )
      const created = await lockJob(sql, insertId)
      if (!created) throw new Error('the job just inserted is not there')
      if (job.cancelOlder) await cancelAll(sql, await unfinished(sql, created), `${created.name} is newer`)
      await place(sql, created, maxJobs)
      return { job: created, created: true }
    },
    { idempotent: true },
  )
}

/** Jobs of the same pipeline and ref that are ahead of this one, queued or running. Index: PRIMARY of slot, blocked, job. */
async function unfinished(sql: Sql, { namespace, pipeline, ref, id }: LockedJob): Promise<number[]> {
  const ids: number[] = []
  for (const table of ['slot', 'blocked'] as const) {
    const rows = await sql.query<{ id: number }>(
      `SELECT job.id FROM ${table} JOIN job ON job.id = ${table}.job_id
       WHERE ${table}.namespace = ? AND ${table}.pipeline = ? AND job.ref = ? AND job.id < ?`,
      [namespace, pipeline, ref, id],
    )
    ids.push(...rows.map((row) => row.id))
  }
  return ids
}

/** pipeline-<12 hex>, with all 40 where another commit begins the same; a rebuild has its number behind. */
async function nameFor(sql: Sql, { namespace, pipeline, commit }: NewJob, n: number): Promise<string> {
  const [short, long] = [commit.slice(0, 12), commit].map((id) => `${pipeline}-${id}${n > 1 ? `-${n}` : ''}`)
  const taken = await selectJobs(sql, 'job.namespace = ? AND job.name = ?', [namespace, short ?? ''])
  return (taken.length === 0 ? short : long) ?? ''
}

/** Of `web-1a2b3c4d5e6f-2`: 2; without a number: 1. */
function rebuildNumber(name: string, job: NewJob): number {
  return Number(/^[0-9a-f]+-(\d+)$/.exec(name.slice(job.pipeline.length + 1))?.[1] ?? 1)
}
