import { Fenced } from '../api/errors.ts'
import type { JobClaim } from '../api/workerApi.ts'
import type { Database, Sql } from '../runtime/sql.ts'
import { end } from './claim.ts'
import { type Job, lockJob, nowMs } from './job.ts'
import { lockPipeline, place, release } from './slots.ts'

const maxLostWorkers = 3

/** Locks job and lease when the token is the latest. Throws Fenced. */
async function holding(sql: Sql, { jobId, token }: JobClaim): Promise<Job> {
  const job = await lockJob(sql, jobId)
  const [row] = await sql.query<{ token: string }>('SELECT token FROM lease WHERE job_id = ? FOR UPDATE', [jobId])
  if (!job || row?.token !== token) throw new Fenced(`job ${jobId}: the token is not the latest`)
  return job
}

/** Throws Fenced when the token is not the latest. */
export async function requireLease(database: Database, claim: JobClaim): Promise<Job> {
  return database.transaction((sql) => holding(sql, claim), { idempotent: true })
}

/** Prolongs the lease. `cancel`: a person wants the job ended. Throws Fenced. */
export async function heartbeat(database: Database, claim: JobClaim, leaseMs: number): Promise<{ cancel: boolean }> {
  return database.transaction(
    async (sql) => {
      const job = await holding(sql, claim)
      await sql.execute(`UPDATE lease SET seen_at_ms = ${nowMs}, expires_at_ms = ${nowMs} + ? WHERE job_id = ?`, [
        leaseMs,
        claim.jobId,
      ])
      return { cancel: job.cancel }
    },
    { idempotent: true },
  )
}

/** Keeps what the claim decided: the regions the artifact must reach. Throws Fenced. */
export async function setTarget(database: Database, claim: JobClaim, target: unknown): Promise<void> {
  await database.transaction(async (sql) => {
    await holding(sql, claim)
    await sql.execute('UPDATE job SET target = COALESCE(target, ?) WHERE id = ?', [JSON.stringify(target), claim.jobId])
  })
}

/** Keeps what was found of the uploaded blob, before the job may be finished as built. Throws Fenced. */
export async function recordUpload(database: Database, claim: JobClaim, facts: unknown): Promise<void> {
  await database.transaction(async (sql) => {
    await holding(sql, claim)
    await sql.execute('UPDATE job SET facts = ? WHERE id = ?', [JSON.stringify(facts), claim.jobId])
  })
}

export type Outcome =
  | { result: 'Built' }
  | { result: 'Failed'; code: string; message: string }
  | { result: 'HandedBack' }

/** Ends the lease with what came of it. Repeating a finish that was accepted is fine. Throws Fenced. */
export async function finish(database: Database, claim: JobClaim, outcome: Outcome): Promise<void> {
  await database.transaction(
    async (sql) => {
      const repeated = await sql.query('SELECT id FROM job WHERE id = ? AND finished_token = ?', [
        claim.jobId,
        claim.token,
      ])
      if (repeated.length > 0) return
      const job = await holding(sql, claim)
      await sql.execute('DELETE FROM lease WHERE job_id = ?', [job.id])
      await sql.execute('UPDATE job SET finished_token = ? WHERE id = ?', [claim.token, job.id])
      if (outcome.result === 'HandedBack') await putBack(sql, job, 'handed_back')
      else if (outcome.result === 'Failed') {
        const phase = outcome.code === 'Cancelled' ? 'Cancelled' : 'Failed'
        await end(sql, job, phase, { code: outcome.code, message: outcome.message })
      } else await built(sql, job)
    },
    { idempotent: true },
  )
}

async function built(sql: Sql, job: Job): Promise<void> {
  if (job.facts === null) throw new Fenced(`job ${job.id}: nothing was uploaded under this token`)
  await sql.execute(
    `UPDATE job SET phase = 'Replicating', code = NULL, message = NULL, updated_at_ms = ${nowMs}
     WHERE id = ?`,
    [job.id],
  )
  await release(sql, job)
}

/** A running job goes back to its place in the line; its facts are those of an upload that no longer counts. */
async function putBack(sql: Sql, job: Job, count: 'handed_back' | 'lost_workers'): Promise<void> {
  await sql.execute(
    `UPDATE job SET phase = 'Queued', worker = NULL, started_at_ms = NULL, facts = NULL, ${count} = ${count} + 1,
       updated_at_ms = ${nowMs} WHERE id = ?`,
    [job.id],
  )
  await place(sql, job, await lockPipeline(sql, job))
}

/**
 * Takes the job from a worker that was lost, when its lease is still the one with this token. It goes back to its
 * place, or fails as WorkerLost when three workers in turn were lost with it.
 */
export async function requeueLost(database: Database, claim: JobClaim): Promise<'requeued' | 'failed' | 'gone'> {
  return database.transaction(async (sql) => {
    const job = await lockJob(sql, claim.jobId)
    const { affectedRows } = await sql.execute('DELETE FROM lease WHERE job_id = ? AND token = ?', [
      claim.jobId,
      claim.token,
    ])
    if (!job || affectedRows === 0) return 'gone'
    const [row] = await sql.query<{ lost: number }>('SELECT lost_workers AS lost FROM job WHERE id = ?', [job.id])
    if (job.cancel) {
      await end(sql, job, 'Cancelled', { code: 'Cancelled', message: 'cancelled; its worker was lost' })
      return 'failed'
    }
    if ((row?.lost ?? 0) + 1 < maxLostWorkers) {
      await putBack(sql, job, 'lost_workers')
      return 'requeued'
    }
    await sql.execute('UPDATE job SET lost_workers = lost_workers + 1 WHERE id = ?', [job.id])
    await end(sql, job, 'Failed', {
      code: 'WorkerLost',
      message: `${maxLostWorkers} workers in turn were lost building this`,
    })
    return 'failed'
  })
}
