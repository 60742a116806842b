import { Fenced } from '../api/errors.ts'
import type { JobClaim } from '../api/workerApi.ts'
import type { Database, Sql, Statement, Transaction } from '../runtime/sql.ts'
import { end } from './end.ts'
import { given, type HeldJob, type Job, lockJob, lockJobs, nowMs } from './job.ts'
import { lockPipeline, place, release } from './slots.ts'

const maxLostWorkers = 3

const refusal = ({ jobId }: JobClaim) => new Fenced(`job ${jobId}: the token is not the latest`)

/** Locks job and lease when the token is the latest. Throws Fenced. */
async function holding(sql: Sql, claim: JobClaim): Promise<Job> {
  const job = await lockJob(sql, claim.jobId)
  if (job?.token !== claim.token) throw refusal(claim)
  return job
}

/** Throws Fenced when the token is not the latest. */
export async function requireLease(database: Database, claim: JobClaim): Promise<Job> {
  return database.transaction((sql) => holding(sql, claim), { idempotent: true })
}

/** Prolongs the lease. `cancel`: a person wants the job ended. Throws Fenced. */
export async function heartbeat(database: Database, claim: JobClaim): Promise<{ cancel: boolean }> {
  const [answer] = await heartbeatMany(database, [claim])
  if (!answer || answer instanceof Fenced) throw answer ?? refusal(claim)
  return answer
}

/** Prolongs many leases in one transaction; for each that is refused, why. Index: by_job of slot, PRIMARY of job. */
export async function heartbeatMany(database: Database, claims: JobClaim[]): Promise<({ cancel: boolean } | Fenced)[]> {
  if (claims.length === 0) return []
  const { table, value } = given(
    ['job_id', 'token'],
    claims.map(({ jobId, token }) => ({ job_id: jobId, token })).sort((a, b) => a.job_id - b.job_id),
  )
  const held = `${table} STRAIGHT_JOIN slot ON slot.job_id = given.job_id AND slot.token = given.token`
  const rows = await database.transaction(
    async (sql) => {
      const [, found = []] = await sql.all([
        [`UPDATE ${held} SET slot.seen_at_ms = ${nowMs}`, [value]],
        [`SELECT slot.token, cancel FROM ${held} STRAIGHT_JOIN job ON job.id = slot.job_id`, [value]],
      ])
      return found as { token: string; cancel: number }[]
    },
    { idempotent: true },
  )
  const cancels = new Map(rows.map(({ token, cancel }) => [token, cancel === 1]))
  return claims.map((claim) => {
    const cancel = cancels.get(claim.token)
    return cancel === undefined ? refusal(claim) : { cancel }
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
      const accepted: Accepted[] = []
      const refusals = finishes.map(({ claim, outcome }) => {
        const job = jobs.get(claim.jobId)
        if (job?.finishedToken === claim.token) return undefined
        if (job?.token !== claim.token) return refusal(claim)
        if (outcome.result === 'Built' && job.facts === null)
          return new Fenced(`job ${claim.jobId}: nothing was uploaded under this token`)
        job.finishedToken = claim.token
        accepted.push({ job, outcome })
        return undefined
      })
      await endLeases(sql, accepted)
      return refusals
    },
    { idempotent: true },
  )
}

interface Accepted {
  job: HeldJob
  outcome: Outcome
}

async function endLeases(sql: Transaction, accepted: Accepted[]): Promise<void> {
  const isOver = ({ job, outcome }: Accepted) => outcome.result !== 'HandedBack' || job.cancel
  const over = accepted.filter(isOver)
  const jobs = over.map(({ job }) => job)
  await release(sql, jobs, over.length > 0 ? recordEnds(over) : [])
  for (const one of accepted) if (!isOver(one)) await putBack(sql, one.job, 'handed_back')
}

/** Index: by_job of slot, PRIMARY of job and of replicating. */
function recordEnds(over: Accepted[]): Statement[] {
  const { table, value } = given(
    ['job_id', 'token', 'phase', 'code', 'message'],
    over.map(({ job, outcome }) => ({ job_id: job.id, token: job.token, ...endOf(outcome) })),
  )
  const built = over.filter(({ outcome }) => outcome.result === 'Built').map(({ job }) => [job.id])
  return [
    // The lease's own words of who and when are kept with the job.
    [
      `UPDATE ${table} STRAIGHT_JOIN slot ON slot.job_id = given.job_id STRAIGHT_JOIN job ON job.id = given.job_id
       SET job.phase = given.phase, job.code = given.code, job.message = given.message, job.finished_token = given.token,
         job.worker = slot.worker, job.started_at_ms = slot.claimed_at_ms, job.target = slot.target,
         job.finished_at_ms = IF(given.phase = 'Replicating', NULL, ${nowMs}), job.updated_at_ms = ${nowMs}`,
      [value],
    ],
    ...(built.length > 0 ? [['INSERT INTO replicating (job_id) VALUES ?', [built]] satisfies Statement] : []),
  ]
}

function endOf(outcome: Outcome) {
  if (outcome.result === 'Built') return { phase: 'Replicating', code: null, message: null }
  if (outcome.result === 'HandedBack')
    return { phase: 'Cancelled', code: 'Cancelled', message: 'cancelled while its worker stopped' }
  const { code, message } = outcome
  return { phase: code === 'Cancelled' ? 'Cancelled' : 'Failed', code, message: message.slice(0, 4096) }
}

/** A running job goes back to its place in the line; its facts are those of an upload that no longer counts. */
async function putBack(sql: Sql, job: Job, count: 'handed_back' | 'lost_workers'): Promise<void> {
  await sql.execute(`UPDATE job SET facts = NULL, ${count} = ${count} + 1, updated_at_ms = ${nowMs} WHERE id = ?`, [
    job.id,
  ])
  await sql.execute(
    `UPDATE slot SET worker = NULL, token = NULL, poll_id = NULL, target = NULL, claimed_at_ms = NULL, seen_at_ms = NULL
     WHERE job_id = ?`,
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
    if (job?.token !== claim.token) return 'gone'
    if (job.cancel) {
      await end(sql, job, 'Cancelled', { code: 'Cancelled', message: 'cancelled; its worker was lost' })
      return 'failed'
    }
    if (job.lostWorkers + 1 < maxLostWorkers) {
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

/** A lease as it is now. */
export interface LeaseRow {
  jobId: number
  worker: string
  token: string
  pollId: number
  claimedAtMs: number
  seenAtMs: number
}

/** All leases. Index: by_poll, of those slots that have one. */
export function leases(sql: Sql): Promise<LeaseRow[]> {
  return sql.query(
    `SELECT job_id AS jobId, worker, token, poll_id AS pollId, claimed_at_ms AS claimedAtMs, seen_at_ms AS seenAtMs
     FROM slot FORCE INDEX (by_poll) WHERE worker IS NOT NULL`,
  )
}
