import { randomBytes } from 'node:crypto'
import type { Database, Sql } from '../runtime/sql.ts'
import { type Job, lockJob, nowMs } from './job.ts'
import { release } from './slots.ts'

export interface Claimer {
  worker: string
  /** Grows with each poll of this worker. */
  pollId: number
  probeUrl: string
  probeSecret: string
}

export interface Claim {
  job: Job
  token: string
}

/**
 * The next job, leased to this worker; undefined when there is none. Asking again with the same pollId gives the same
 * job again, so a lost answer costs nothing. One transaction: the head of `ready` that nobody else is taking
 * (SKIP LOCKED, READ COMMITTED), then changes by primary key only.
 */
export async function claim(database: Database, claimer: Claimer, leaseMs: number): Promise<Claim | undefined> {
  return database.transaction(
    async (sql) => {
      await sql.execute(
        `INSERT INTO worker (name, probe_url, probe_secret, last_seen_ms) VALUES (?, ?, ?, ${nowMs})
         ON DUPLICATE KEY UPDATE probe_url = VALUES(probe_url), last_seen_ms = VALUES(last_seen_ms)`,
        [claimer.worker, claimer.probeUrl, claimer.probeSecret],
      )
      const before = await claimedBy(sql, claimer)
      if (before) return before
      for (;;) {
        const [head] = await sql.query<{ priority: number; createdAtMs: number; id: number }>(
          // Index: PRIMARY of ready; the order is the index's, so LIMIT bounds what is locked.
          `SELECT priority, created_at_ms AS createdAtMs, job_id AS id FROM ready
           ORDER BY priority, created_at_ms, job_id LIMIT 1 FOR UPDATE SKIP LOCKED`,
        )
        if (!head) return undefined
        await sql.execute('DELETE FROM ready WHERE priority = ? AND created_at_ms = ? AND job_id = ?', [
          head.priority,
          head.createdAtMs,
          head.id,
        ])
        const job = await lockJob(sql, head.id)
        if (job?.phase !== 'Queued') continue
        if (job.cancel) {
          await end(sql, job, 'Cancelled')
          continue
        }
        return lease(sql, claimer, job, leaseMs)
      }
    },
    { idempotent: true },
  )
}

async function claimedBy(sql: Sql, claimer: Claimer): Promise<Claim | undefined> {
  const [row] = await sql.query<{ jobId: number; token: string }>(
    // Index: by_poll.
    'SELECT job_id AS jobId, token FROM lease WHERE worker = ? AND poll_id = ?',
    [claimer.worker, claimer.pollId],
  )
  const job = row && (await lockJob(sql, row.jobId))
  return row && job ? { job, token: row.token } : undefined
}

async function lease(sql: Sql, claimer: Claimer, job: Job, leaseMs: number): Promise<Claim> {
  await sql.execute(
    `UPDATE job SET phase = 'Running', claims = claims + 1, worker = ?, started_at_ms = ${nowMs}, updated_at_ms = ${nowMs}
     WHERE id = ?`,
    [claimer.worker, job.id],
  )
  const [row] = await sql.query<{ claims: number }>('SELECT claims FROM job WHERE id = ?', [job.id])
  const token = `${row?.claims}-${randomBytes(12).toString('hex')}`
  await sql.execute(
    `INSERT INTO lease (job_id, worker, token, poll_id, claimed_at_ms, seen_at_ms, expires_at_ms)
     VALUES (?, ?, ?, ?, ${nowMs}, ${nowMs}, ${nowMs} + ?)`,
    [job.id, claimer.worker, token, claimer.pollId, leaseMs],
  )
  return { job: { ...job, phase: 'Running', worker: claimer.worker, attempt: job.attempt + 1 }, token }
}

/** Ends a job that is locked: its slot is free, it is in no line. */
export async function end(
  sql: Sql,
  job: Job,
  phase: 'Failed' | 'Cancelled',
  why: { code?: string; message?: string } = {},
): Promise<void> {
  await sql.execute(
    `UPDATE job SET phase = ?, code = ?, message = ?, finished_at_ms = ${nowMs}, updated_at_ms = ${nowMs} WHERE id = ?`,
    [phase, why.code ?? null, why.message ?? null, job.id],
  )
  await release(sql, job)
}
