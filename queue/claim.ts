import { randomBytes } from 'node:crypto'
import type { Database, Sql, Statement, Transaction } from '../runtime/sql.ts'
import { byKeys, type Job, lockJobs, lockReady, nowMs } from './job.ts'
import { release } from './slots.ts'
import { lockDraining } from './workers.ts'

export interface Claimer {
  worker: string
  /** Grows with each poll of this worker. */
  pollId: number
  probeUrl: string
  probeSecret: string
  /** Its size. Default: standard. */
  class?: string
  /** What keeps its builds in bounds, for people. */
  isolation?: string
}

export interface Claim {
  job: Job
  token: string
}

/** The next job, leased to this worker; undefined when there is none. As `hear` and `claimMany` of one. */
export async function claim(database: Database, claimer: Claimer, leaseMs: number): Promise<Claim | undefined> {
  await hear(database, [claimer])
  const [taken] = await claimMany(database, [claimer], leaseMs)
  return taken === 'draining' ? undefined : taken
}

/**
 * The next jobs, one for each claimer as far as they go, in the claimers' order; none for workers that are draining.
 * Asking again with the same pollId gives the same job again, so a lost answer costs nothing. One transaction whatever
 * the number: the commit is what a claim costs. It takes the head of `ready` that nobody else is taking (SKIP LOCKED,
 * READ COMMITTED), then changes by primary key only.
 */
export async function claimMany(
  database: Database,
  claimers: Claimer[],
  leaseMs: number,
): Promise<(Claim | 'draining' | undefined)[]> {
  let draining = new Set<string>()
  const run = (work: (sql: Transaction, awake: Claimer[]) => Promise<Map<string, Claim>>) =>
    database.transaction(
      async (sql) => {
        draining = await lockDraining(sql, [...new Set(claimers.map(({ worker }) => worker))])
        return work(
          sql,
          claimers.filter(({ worker }) => !draining.has(worker)),
        )
      },
      { idempotent: true },
    )
  const claims = await run(async (sql, awake) => {
    const leased = await leaseNext(sql, awake, leaseMs)
    const rest = claimers.filter((claimer) => !leased.has(pollOf(claimer)))
    return new Map([...leased, ...(await claimedBefore(sql, rest))])
  }).catch((error: unknown) => {
    if (!isDuplicate(error)) throw error
    // Somebody asks again, which is rare: only now is it worth looking first.
    return run(async (sql, awake) => {
      const before = await claimedBefore(sql, claimers)
      const waiting = awake.filter((claimer) => !before.has(pollOf(claimer)))
      return new Map([...before, ...(await leaseNext(sql, waiting, leaseMs))])
    })
  })
  return claimers.map(
    (claimer) => claims.get(pollOf(claimer)) ?? (draining.has(claimer.worker) ? 'draining' : undefined),
  )
}

const pollOf = ({ worker, pollId }: Pick<Claimer, 'worker' | 'pollId'>) => `${worker} ${pollId}`

const isDuplicate = (error: unknown) => (error as { errno?: unknown }).errno === 1062

/** Notes that the workers were heard; in the order of their names, so that two batches don't lock each other out. */
export async function hear(sql: Sql, claimers: Claimer[]): Promise<void> {
  if (claimers.length === 0) return
  const rows = new Map(
    claimers.map(({ worker, probeUrl, probeSecret, class: size = 'standard', isolation = '' }) => [
      worker,
      [worker, probeUrl, probeSecret, size, isolation],
    ]),
  )
  const names = [...rows.keys()].sort()
  await sql.execute(
    `INSERT INTO worker (name, probe_url, probe_secret, class, isolation, first_seen_ms, last_seen_ms)
     VALUES ${names.map(() => `(?, ?, ?, ?, ?, ${nowMs}, ${nowMs})`).join(', ')}
     ON DUPLICATE KEY UPDATE probe_url = VALUES(probe_url), last_seen_ms = VALUES(last_seen_ms)`,
    names.flatMap((name) => rows.get(name) ?? []),
  )
}

async function claimedBefore(sql: Sql, claimers: Claimer[]): Promise<Map<string, Claim>> {
  if (claimers.length === 0) return new Map()
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

/**
 * Leases the head of the line to the claimers, in order.
 *
 * @throws ER_DUP_ENTRY when one of the polls has a lease already
 */
async function leaseNext(sql: Transaction, claimers: Claimer[], leaseMs: number): Promise<Map<string, Claim>> {
  const leased = new Map<string, Claim>()
  while (leased.size < claimers.length) {
    const heads = await lockReady(sql, claimers.length - leased.size)
    if (heads.length === 0) break
    const free = claimers.slice(leased.size)
    const claims = heads
      .filter(({ phase, cancel }) => phase === 'Queued' && !cancel)
      .map((job, i) => claimFor(job, free[i] as Claimer))
    await sql.all([leaveLine(heads), ...(claims.length > 0 ? giveLeases(claims, leaseMs) : [])])
    for (const job of heads) if (job.phase === 'Queued' && job.cancel) await end(sql, job, 'Cancelled')
    for (const { claimer, ...claim } of claims) leased.set(pollOf(claimer), claim)
  }
  return leased
}

const claimFor = (job: Job, claimer: Claimer) => ({
  claimer,
  job: { ...job, phase: 'Running', worker: claimer.worker, attempt: job.attempt + 1 } satisfies Job,
  token: `${job.claims + 1}-${randomBytes(12).toString('hex')}`,
})

function leaveLine(jobs: Job[]): Statement {
  const { where, values } = byKeys(
    ['priority', 'created_at_ms', 'job_id'],
    jobs.map((job) => ({ priority: -job.priority, created_at_ms: job.createdAtMs, job_id: job.id })),
  )
  return [`DELETE FROM ready WHERE ${where}`, values]
}

function giveLeases(claims: ReturnType<typeof claimFor>[], leaseMs: number): Statement[] {
  return [
    [
      `UPDATE job SET phase = 'Running', claims = claims + 1, started_at_ms = ${nowMs}, updated_at_ms = ${nowMs},
         worker = CASE id ${claims.map(() => 'WHEN ? THEN ?').join(' ')} END
       WHERE id IN (?)`,
      [...claims.flatMap(({ job, claimer }) => [job.id, claimer.worker]), claims.map(({ job }) => job.id)],
    ],
    [
      `INSERT INTO lease (job_id, worker, token, poll_id, claimed_at_ms, seen_at_ms, expires_at_ms)
       VALUES ${claims.map(() => `(?, ?, ?, ?, ${nowMs}, ${nowMs}, ${nowMs} + ?)`).join(', ')}`,
      claims.flatMap(({ job, claimer, token }) => [job.id, claimer.worker, token, claimer.pollId, leaseMs]),
    ],
  ]
}

/** Ends a job that is locked: its slot is free, it is in no line. */
export async function end(
  sql: Transaction,
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
