import { randomBytes } from 'node:crypto'
import { Stalled } from '../api/errors.ts'
import type { Database, Sql, Statement, Transaction } from '../runtime/sql.ts'
import { end } from './end.ts'
import { given, type Job, lockJobs, lockReady, nowMs } from './job.ts'

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

/** What a claim fixes for the job, to be kept as JSON. Throws Stalled when the job can't be built: that ends it. */
export type TargetOf = (job: Job) => unknown

/** The next job, leased to this worker; undefined when there is none. As `hear` and `claimMany` of one. */
export async function claim(database: Database, claimer: Claimer, targetOf?: TargetOf): Promise<Claim | undefined> {
  await hear(database, [claimer])
  const [taken] = await claimMany(database, [claimer], targetOf)
  return taken
}

/**
 * The next jobs, one for each claimer as far as they go, in the claimers' order. Asking again with the same pollId gives
 * the same job again, so a lost answer costs nothing. One transaction whatever the number: the commit is what a claim
 * costs. It takes the head of `ready` that nobody else is taking (SKIP LOCKED, READ COMMITTED), then changes by key only.
 */
export async function claimMany(
  database: Database,
  claimers: Claimer[],
  targetOf: TargetOf = () => null,
): Promise<(Claim | undefined)[]> {
  const run = (work: (sql: Transaction) => Promise<Map<string, Claim>>) =>
    database.transaction(work, { idempotent: true })
  const claims = await run(async (sql) => {
    const leased = await leaseNext(sql, claimers, targetOf)
    const rest = claimers.filter((claimer) => !leased.has(pollOf(claimer)))
    return new Map([...leased, ...(await claimedBefore(sql, rest))])
  }).catch((error: unknown) => {
    if (!isDuplicate(error)) throw error
    // Somebody asks again, which is rare: only now is it worth looking first.
    return run(async (sql) => {
      const before = await claimedBefore(sql, claimers)
      const waiting = claimers.filter((claimer) => !before.has(pollOf(claimer)))
      return new Map([...before, ...(await leaseNext(sql, waiting, targetOf))])
    })
  })
  return claimers.map((claimer) => claims.get(pollOf(claimer)))
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
  // Index: by_poll.
  const { table, value } = given(
    ['worker', 'poll_id'],
    claimers.map(({ worker, pollId }) => ({ worker, poll_id: pollId })),
  )
  const rows = await sql.query<{ jobId: number; worker: string; pollId: number }>(
    `SELECT slot.job_id AS jobId, slot.worker, slot.poll_id AS pollId
     FROM ${table} STRAIGHT_JOIN slot ON slot.worker = given.worker AND slot.poll_id = given.poll_id`,
    [value],
  )
  const ids = rows.map(({ jobId }) => jobId)
  const jobs = new Map((await lockJobs(sql, ids)).map((job) => [job.id, job]))
  return new Map(
    rows.flatMap((row) => {
      const job = jobs.get(row.jobId)
      const token = job?.worker === row.worker ? job.token : undefined
      return job && token ? [[pollOf(row), { job, token }]] : []
    }),
  )
}

/**
 * Leases the head of the line to the claimers, in order.
 *
 * @throws ER_DUP_ENTRY when one of the polls has a lease already
 */
async function leaseNext(sql: Transaction, claimers: Claimer[], targetOf: TargetOf): Promise<Map<string, Claim>> {
  const leased = new Map<string, Claim>()
  while (leased.size < claimers.length) {
    const heads = await lockReady(sql, claimers.length - leased.size)
    if (heads.length === 0) break
    const claims: NewLease[] = []
    const refused: { job: Job; why: Stalled }[] = []
    for (const job of heads) {
      const claimer = claimers[leased.size + claims.length] as Claimer
      const target = targetFor(job, targetOf)
      if (target instanceof Stalled) refused.push({ job, why: target })
      else claims.push(newLease(job, claimer, target))
    }
    await sql.all([leaveLine(heads), ...(claims.length > 0 ? [giveLeases(claims)] : [])])
    for (const { job, why } of refused) await end(sql, job, 'Failed', why)
    for (const { claimer, job, token } of claims) leased.set(pollOf(claimer), { job, token })
  }
  return leased
}

function targetFor(job: Job, targetOf: TargetOf): string | Stalled {
  try {
    return JSON.stringify(targetOf(job))
  } catch (error) {
    if (error instanceof Stalled) return error
    throw error
  }
}

type NewLease = Claim & { claimer: Claimer; target: string }

const newLease = (job: Job, claimer: Claimer, target: string): NewLease => ({
  claimer,
  target,
  job: { ...job, phase: 'Running', worker: claimer.worker, attempt: job.lostWorkers + 1, target },
  token: `${job.lostWorkers + job.handedBack + 1}-${randomBytes(12).toString('hex')}`,
})

/** Index: PRIMARY of ready. */
function leaveLine(jobs: Job[]): Statement {
  const { table, value } = given(
    ['priority', 'created_at_ms', 'job_id'],
    jobs.map((job) => ({ priority: -job.priority, created_at_ms: job.createdAtMs, job_id: job.id })),
  )
  return [
    `DELETE ready FROM ${table} STRAIGHT_JOIN ready
       ON ready.priority = given.priority AND ready.created_at_ms = given.created_at_ms AND ready.job_id = given.job_id`,
    [value],
  ]
}

/** Index: by_job of slot. */
function giveLeases(claims: NewLease[]): Statement {
  const { table, value } = given(
    ['job_id', 'worker', 'token', 'poll_id', 'target'],
    claims.map(({ job, claimer, token, target }) => ({
      job_id: job.id,
      worker: claimer.worker,
      token,
      poll_id: claimer.pollId,
      target,
    })),
  )
  return [
    `UPDATE ${table} STRAIGHT_JOIN slot ON slot.job_id = given.job_id
     SET slot.worker = given.worker, slot.token = given.token, slot.poll_id = given.poll_id, slot.target = given.target,
       slot.claimed_at_ms = ${nowMs}, slot.seen_at_ms = ${nowMs}`,
    [value],
  ]
}
