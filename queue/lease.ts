import { Fenced } from '../api/errors.ts'
import type { JobClaim } from '../api/workerApi.ts'
import type { Database, Sql } from '../runtime/sql.ts'
import { end } from './end.ts'
import { changed, given, type LockedJob, lockJob, nowMs } from './job.ts'
import { lockPipeline, place } from './slots.ts'

const maxLostWorkers = 3

export const refusal = ({ jobId }: JobClaim) => new Fenced(`job ${jobId}: the token is not the latest`)

/** Locks job and lease when the token is the latest. Throws Fenced. */
async function holding(sql: Sql, claim: JobClaim): Promise<LockedJob> {
  const job = await lockJob(sql, claim.jobId)
  if (job?.token !== claim.token) throw refusal(claim)
  return job
}

/** Throws Fenced when the token is not the latest. */
export async function requireLease(database: Database, claim: JobClaim): Promise<LockedJob> {
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

/** A running job goes back to its place in the line; its facts are those of an upload that no longer counts. */
export async function putBack(sql: Sql, job: LockedJob, count: 'handed_back' | 'lost_workers'): Promise<void> {
  await sql.execute(`UPDATE job SET facts = NULL, ${count} = ${count} + 1, ${changed} WHERE id = ?`, [job.id])
  await sql.execute(
    `UPDATE slot SET worker = 0, poll_id = job_id, token = '', target = '', claimed_at_ms = 0, seen_at_ms = 0
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
    const isLast = job.lostWorkers + 1 >= maxLostWorkers
    if (!isLast && !job.cancel) {
      await putBack(sql, job, 'lost_workers')
      return 'requeued'
    }
    await sql.execute('UPDATE job SET lost_workers = lost_workers + 1 WHERE id = ?', [job.id])
    const message = `${maxLostWorkers} workers in turn were lost building this`
    if (job.cancel)
      await end(sql, job, { phase: 'Cancelled', code: 'Cancelled', message: 'cancelled; its worker was lost' })
    else await end(sql, job, { phase: 'Failed', code: 'WorkerLost', message })
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

/** All leases. Index: by_poll, of those slots that have one; PRIMARY of worker. */
export function leases(sql: Sql): Promise<LeaseRow[]> {
  return sql.query(
    `SELECT job_id AS jobId, name AS worker, token, poll_id AS pollId, claimed_at_ms AS claimedAtMs, seen_at_ms AS seenAtMs
     FROM slot FORCE INDEX (by_poll) STRAIGHT_JOIN worker ON worker.id = slot.worker WHERE slot.worker > 0`,
  )
}
