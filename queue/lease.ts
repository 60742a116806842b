import { Fenced } from '../api/errors.ts'
import type { JobClaim } from '../api/workerApi.ts'
import type { Database, Sql } from '../runtime/sql.ts'
import { end } from './claim.ts'
import { type Job, lockJob, lockJobs, nowMs } from './job.ts'
import { lockPipeline, lockPipelines, place, release } from './slots.ts'

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
      const jobs = new Map((await lockJobs(sql, ids)).map((job) => [job.id, job]))
      const tokens = await tokensOf(sql, ids)
      const accepted: { job: Job; finish: Finish }[] = []
      const refusals = finishes.map((finish) => {
        const { jobId, token } = finish.claim
        const known = tokens.get(jobId)
        const job = jobs.get(jobId)
        if (known?.finished === token) return undefined
        if (!job || known?.lease !== token) return new Fenced(`job ${jobId}: the token is not the latest`)
        if (finish.outcome.result === 'Built' && job.facts === null)
          return new Fenced(`job ${jobId}: nothing was uploaded under this token`)
        known.finished = token
        accepted.push({ job, finish })
        return undefined
      })
      await endLeases(sql, accepted)
      return refusals
    },
    { idempotent: true },
  )
}

/** By job: the token that may finish it, and the one that did. */
async function tokensOf(
  sql: Sql,
  ids: number[],
): Promise<Map<number, { lease: string | null; finished: string | null }>> {
  const rows = await sql.query<{ id: number; lease: string | null; finished: string | null }>(
    // Index: PRIMARY of both.
    `SELECT job.id, lease.token AS lease, job.finished_token AS finished
     FROM job LEFT JOIN lease ON lease.job_id = job.id WHERE job.id IN (?) ORDER BY job.id FOR UPDATE`,
    [ids],
  )
  return new Map(rows.map(({ id, ...tokens }) => [id, tokens]))
}

async function endLeases(sql: Sql, accepted: { job: Job; finish: Finish }[]): Promise<void> {
  if (accepted.length === 0) return
  const ids = accepted.map(({ job }) => job.id)
  await sql.execute('DELETE FROM lease WHERE job_id IN (?)', [ids])
  await sql.execute(
    `UPDATE job SET finished_token = CASE id ${ids.map(() => 'WHEN ? THEN ?').join(' ')} END WHERE id IN (?)`,
    [...accepted.flatMap(({ job, finish }) => [job.id, finish.claim.token]), ids],
  )
  // In one order, so that two batches don't lock each other out.
  await lockPipelines(
    sql,
    accepted.map(({ job }) => job),
  )
  const built: Job[] = []
  for (const { job, finish } of accepted) {
    const { outcome } = finish
    if (outcome.result === 'Built') built.push(job)
    else if (outcome.result === 'HandedBack') await putBack(sql, job, 'handed_back')
    else {
      const phase = outcome.code === 'Cancelled' ? 'Cancelled' : 'Failed'
      await end(sql, job, phase, { code: outcome.code, message: outcome.message })
    }
  }
  if (built.length === 0) return
  await sql.execute(
    `UPDATE job SET phase = 'Replicating', code = NULL, message = NULL, updated_at_ms = ${nowMs} WHERE id IN (?)`,
    [built.map(({ id }) => id)],
  )
  await release(sql, built)
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
