import type { Database, Sql, Transaction } from '../runtime/sql.ts'
import { findJobs } from './control.ts'
import { end } from './end.ts'
import { given, type Job, jobsOf, type LockedJob, nowMs, readyLocked } from './job.ts'
import { leasesGiven, lineLeft, newLeases, type TargetOf, targetsKept } from './newLease.ts'
import { type LockedWorker, workersLocked } from './workers.ts'

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
  job: LockedJob & Pick<Job, 'worker' | 'target'>
  token: string
}

export interface Claiming {
  /** Each gets a job, as far as they go. */
  claimers: Claimer[]
  targetOf?: TargetOf
  /** Digests of targets that are known to be in the table; those that are put there now are added. */
  kept?: Set<string>
}

export interface Claims {
  /** For each claimer, in their order. A worker that is draining gets nothing; one that is unknown must be heard first. */
  claims: (Claim | 'draining' | 'unknown' | undefined)[]
  /** There may be more in line. */
  more: boolean
}

/**
 * Claims in one transaction, whatever their number: it is the round trips, the plans and the commit that they cost. Two round
 * trips: locks, then changes by key with the commit behind them. What is claimed is the head of `ready` that nobody else is
 * taking (SKIP LOCKED, READ COMMITTED). Asking again with the same pollId gives the same job again, so a lost answer costs
 * nothing.
 */
export async function takeClaims(database: Database, claiming: Claiming): Promise<Claims> {
  try {
    return await database.transaction((sql) => take(sql, claiming), { idempotent: true })
  } catch (error) {
    if (!isDuplicate(error)) throw error
    // Somebody asks again, which is rare: only now is it worth looking first.
    const { claimers } = claiming
    const before = await claimedBefore(database, claimers)
    if (before.size === 0) throw error
    const rest = await takeClaims(database, {
      ...claiming,
      claimers: claimers.filter((one) => !before.has(pollOf(one))),
    })
    const others = rest.claims.values()
    return { ...rest, claims: claimers.map((one) => before.get(pollOf(one)) ?? others.next().value) }
  }
}

/** The next job, leased to this worker; undefined when there is none. */
export async function claim(database: Database, claimer: Claimer, targetOf?: TargetOf): Promise<Claim | undefined> {
  await hear(database, [claimer])
  const { claims } = await takeClaims(database, { claimers: [claimer], ...(targetOf && { targetOf }) })
  const [taken] = claims
  if (typeof taken === 'object') return taken
  return (await claimedBefore(database, [claimer])).get(pollOf(claimer))
}

const isDuplicate = (error: unknown) => (error as { errno?: unknown }).errno === 1062

async function take(
  sql: Transaction,
  { claimers, targetOf = () => null, kept = new Set() }: Claiming,
): Promise<Claims> {
  const names = [...new Set(claimers.map(({ worker }) => worker))]
  if (names.length === 0) return { claims: [], more: true }
  const [workers, ready] = await sql.all([workersLocked(names), readyLocked(claimers.length)])
  const known = new Map((workers as unknown as LockedWorker[]).map((worker) => [worker.name, worker]))
  const standings = claimers.map((claimer) => {
    const worker = known.get(claimer.worker)
    return {
      claimer,
      workerId: worker?.id ?? 0,
      is: !worker ? 'unknown' : worker.draining ? 'draining' : 'awake',
    } as const
  })
  const awake = standings.filter(({ is }) => is === 'awake')
  const heads = jobsOf(ready)
  const { leases, refused } = newLeases(heads, awake, targetOf)
  const left = [...leases, ...refused].map(({ job }) => job)
  const changes = [
    ...(left.length > 0 ? [lineLeft(left)] : []),
    ...targetsKept(leases, kept),
    ...(leases.length > 0 ? [leasesGiven(leases)] : []),
  ]
  if (refused.length === 0) {
    await sql.commitWith(changes)
    for (const { digest } of leases) kept.add(digest)
  } else {
    await sql.all(changes)
    for (const { job, why } of refused) await end(sql, job, { phase: 'Failed', code: why.code, message: why.message })
  }
  const claims = new Map(leases.map(({ claimer, job, token }) => [pollOf(claimer), { job, token }]))
  return {
    claims: standings.map(({ claimer, is }) => (is === 'awake' ? claims.get(pollOf(claimer)) : is)),
    more: (awake.length > 0 && heads.length >= awake.length) || refused.length > 0,
  }
}

export const pollOf = ({ worker, pollId }: Pick<Claimer, 'worker' | 'pollId'>) => `${worker} ${pollId}`

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

/** What these polls were given when they asked before, by `pollOf`. Index: by_name of worker, by_poll of slot, PRIMARY of job. */
export async function claimedBefore(sql: Sql, claimers: Claimer[]): Promise<Map<string, Claim>> {
  if (claimers.length === 0) return new Map()
  const { table, value } = given(
    ['worker', 'poll_id'],
    claimers.map(({ worker, pollId }) => ({ worker, poll_id: pollId })),
  )
  const rows = await sql.query<{ jobId: number; worker: string; pollId: number; token: string }>(
    `SELECT slot.job_id AS jobId, worker.name AS worker, slot.poll_id AS pollId, slot.token
     FROM ${table} STRAIGHT_JOIN worker ON worker.name = given.worker
       STRAIGHT_JOIN slot ON slot.worker = worker.id AND slot.poll_id = given.poll_id`,
    [value],
  )
  const ids = rows.map(({ jobId }) => jobId)
  const jobs = new Map((await findJobs(sql, ids)).map((job) => [job.id, job]))
  return new Map(
    rows.flatMap((row) => {
      const job = jobs.get(row.jobId)
      return job?.worker === row.worker ? [[pollOf(row), { job, token: row.token }]] : []
    }),
  )
}
