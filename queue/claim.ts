import { randomBytes } from 'node:crypto'
import type { Database, Sql } from '../runtime/sql.ts'
import { byKeys, type Job, lockJobs, nowMs } from './job.ts'
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

/** The next job, leased to this worker; undefined when there is none. As `claimMany` of one. */
export async function claim(database: Database, claimer: Claimer, leaseMs: number): Promise<Claim | undefined> {
  const [taken] = await claimMany(database, [claimer], leaseMs)
  return taken
}

/**
 * The next jobs, one for each claimer as far as they go, in the claimers' order. Asking again with the same pollId gives
 * the same job again, so a lost answer costs nothing. One transaction whatever the number: the commit is what a claim
 * costs. It takes the head of `ready` that nobody else is taking (SKIP LOCKED, READ COMMITTED), then changes by primary
 * key only.
 */
export function claimMany(database: Database, claimers: Claimer[], leaseMs: number): Promise<(Claim | undefined)[]> {
  return database.transaction(
    async (sql) => {
      await hear(sql, claimers)
      const before = await claimedBefore(sql, claimers)
      const waiting = claimers.filter((claimer) => !before.has(pollOf(claimer)))
      const jobs = await takeReady(sql, waiting.length)
      const leased = await lease(sql, waiting, { jobs, leaseMs })
      return claimers.map((claimer) => before.get(pollOf(claimer)) ?? leased.get(pollOf(claimer)))
    },
    { idempotent: true },
  )
}

const pollOf = ({ worker, pollId }: Pick<Claimer, 'worker' | 'pollId'>) => `${worker} ${pollId}`

/** Notes that the workers were heard; in the order of their names, so that two batches don't lock each other out. */
async function hear(sql: Sql, claimers: Claimer[]): Promise<void> {
  const rows = new Map(claimers.map(({ worker, probeUrl, probeSecret }) => [worker, [worker, probeUrl, probeSecret]]))
  const names = [...rows.keys()].sort()
  await sql.execute(
    `INSERT INTO worker (name, probe_url, probe_secret, last_seen_ms)
     VALUES ${names.map(() => `(?, ?, ?, ${nowMs})`).join(', ')}
     ON DUPLICATE KEY UPDATE probe_url = VALUES(probe_url), last_seen_ms = VALUES(last_seen_ms)`,
    names.flatMap((name) => rows.get(name) ?? []),
  )
}

async function claimedBefore(sql: Sql, claimers: Claimer[]): Promise<Map<string, Claim>> {
  const keys = claimers.map(({ worker, pollId }) => ({ worker, poll_id: pollId }))
  // Index: by_poll.
  const { where, values } = byKeys(['worker', 'poll_id'], keys)
  const rows = await sql.query<{ jobId: number; worker: string; pollId: number; token: string }>(
    `SELECT job_id AS jobId, worker, poll_id AS pollId, token FROM lease WHERE ${where}`,
    values,
  )
  const jobs = new Map(
    (
      await lockJobs(
        sql,
        rows.map(({ jobId }) => jobId),
      )
    ).map((job) => [job.id, job]),
  )
  return new Map(
    rows.flatMap((row) => {
      const job = jobs.get(row.jobId)
      return job ? [[pollOf(row), { job, token: row.token }]] : []
    }),
  )
}

/** Takes up to `count` jobs from the head of the line, in order. */
async function takeReady(sql: Sql, count: number): Promise<Job[]> {
  const taken: Job[] = []
  while (taken.length < count) {
    const heads = await sql.query<{ priority: number; created_at_ms: number; job_id: number }>(
      // Index: PRIMARY of ready; the order is the index's, so LIMIT bounds what is locked.
      `SELECT priority, created_at_ms, job_id FROM ready
       ORDER BY priority, created_at_ms, job_id LIMIT ? FOR UPDATE SKIP LOCKED`,
      [count - taken.length],
    )
    if (heads.length === 0) break
    const { where, values } = byKeys(['priority', 'created_at_ms', 'job_id'], heads)
    await sql.execute(`DELETE FROM ready WHERE ${where}`, values)
    const ids = heads.map(({ job_id }) => job_id)
    const jobs = new Map((await lockJobs(sql, ids)).map((job) => [job.id, job]))
    for (const id of ids) {
      const job = jobs.get(id)
      if (job?.phase !== 'Queued') continue
      if (job.cancel) await end(sql, job, 'Cancelled')
      else taken.push(job)
    }
  }
  return taken
}

async function lease(
  sql: Sql,
  claimers: Claimer[],
  { jobs, leaseMs }: { jobs: Job[]; leaseMs: number },
): Promise<Map<string, Claim>> {
  if (jobs.length === 0) return new Map()
  const leases = jobs.flatMap((job, i) => {
    const claimer = claimers[i]
    const token = `${job.claims + 1}-${randomBytes(12).toString('hex')}`
    return claimer ? [{ job, claimer, token }] : []
  })
  const ids = jobs.map(({ id }) => id)
  await sql.execute(
    `UPDATE job SET phase = 'Running', claims = claims + 1, started_at_ms = ${nowMs}, updated_at_ms = ${nowMs},
       worker = CASE id ${leases.map(() => 'WHEN ? THEN ?').join(' ')} END
     WHERE id IN (?)`,
    [...leases.flatMap(({ job, claimer }) => [job.id, claimer.worker]), ids],
  )
  await sql.execute(
    `INSERT INTO lease (job_id, worker, token, poll_id, claimed_at_ms, seen_at_ms, expires_at_ms)
     VALUES ${leases.map(() => `(?, ?, ?, ?, ${nowMs}, ${nowMs}, ${nowMs} + ?)`).join(', ')}`,
    leases.flatMap(({ job, claimer, token }) => [job.id, claimer.worker, token, claimer.pollId, leaseMs]),
  )
  return new Map(
    leases.map(({ job, claimer, token }) => [
      pollOf(claimer),
      { job: { ...job, phase: 'Running', worker: claimer.worker, attempt: job.attempt + 1 }, token },
    ]),
  )
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
  await release(sql, [job])
}
