import { Fenced } from '../api/errors.ts'
import type { JobClaim } from '../api/workerApi.ts'
import type { Database, Sql, Statement, Transaction } from '../runtime/sql.ts'
import { end } from './claim.ts'
import { type Job, lockHeld, lockJob, nowMs } from './job.ts'
import { lockPipeline, pipelinesLocked, place, release } from './slots.ts'

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

export interface Finish {
  claim: JobClaim
  outcome: Outcome
}

/** Ends the lease with what came of it. Repeating a finish that was accepted is fine. Throws Fenced. */
export async function finish(database: Database, claim: JobClaim, outcome: Outcome): Promise<void> {
  const [refusal] = await finishMany(database, [{ claim, outcome }])
  if (refusal) throw refusal
}

/** Ends many leases in one transaction; for each that is refused, why. */
export function finishMany(database: Database, finishes: Finish[]): Promise<(Fenced | undefined)[]> {
  return database.transaction(
    async (sql) => {
      const ids = finishes.map(({ claim }) => claim.jobId)
      const jobs = new Map((await lockHeld(sql, ids)).map((job) => [job.id, job]))
      const accepted: { job: Job; finish: Finish }[] = []
      const refusals = finishes.map((finish) => {
        const { jobId, token } = finish.claim
        const job = jobs.get(jobId)
        if (job?.finishedToken === token) return undefined
        if (job?.token !== token) return new Fenced(`job ${jobId}: the token is not the latest`)
        if (finish.outcome.result === 'Built' && job.facts === null)
          return new Fenced(`job ${jobId}: nothing was uploaded under this token`)
        job.finishedToken = token
        accepted.push({ job, finish })
        return undefined
      })
      await endLeases(sql, accepted)
      return refusals
    },
    { idempotent: true },
  )
}

async function endLeases(sql: Transaction, accepted: { job: Job; finish: Finish }[]): Promise<void> {
  if (accepted.length === 0) return
  const built = accepted.filter(({ finish }) => finish.outcome.result === 'Built')
  const statements: Statement[] = [['DELETE FROM lease WHERE job_id IN (?)', [accepted.map(({ job }) => job.id)]]]
  if (built.length > 0)
    statements.push([
      `UPDATE job SET phase = 'Replicating', code = NULL, message = NULL, built_at_ms = ${nowMs}, updated_at_ms = ${nowMs},
         finished_token = CASE id ${built.map(() => 'WHEN ? THEN ?').join(' ')} END
       WHERE id IN (?)`,
      [...built.flatMap(({ job, finish }) => [job.id, finish.claim.token]), built.map(({ job }) => job.id)],
    ])
  // All in one order, so that two batches don't lock each other out; late, for other batches wait from here on.
  if (built.length < accepted.length) statements.push(pipelinesLocked(accepted.map(({ job }) => job)))
  await sql.all(statements)
  await release(
    sql,
    built.map(({ job }) => job),
  )
  for (const { job, finish } of accepted) {
    const { outcome, claim } = finish
    if (outcome.result === 'Built') continue
    await sql.execute('UPDATE job SET finished_token = ? WHERE id = ?', [claim.token, job.id])
    if (outcome.result === 'HandedBack') await putBack(sql, job, 'handed_back')
    else
      await end(sql, job, outcome.code === 'Cancelled' ? 'Cancelled' : 'Failed', {
        code: outcome.code,
        message: outcome.message,
      })
  }
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
