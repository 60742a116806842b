import { hash, randomBytes } from 'node:crypto'
import { Stalled } from '../api/errors.ts'
import type { Sql, Statement } from '../runtime/sql.ts'
import { findJobs } from './control.ts'
import { given, type Job, type LockedJob, nowMs } from './job.ts'

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

/** What a claim fixes for the job, to be kept as JSON. Throws Stalled when the job can't be built: that ends it. */
export type TargetOf = (job: LockedJob) => unknown

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

interface NewLease extends Claim {
  claimer: Claimer
  /** Of its worker. */
  workerId: number
  target: string
  /** Of the target: the first half of its SHA-256, in hex. */
  digest: string
}

/** A claimer whose worker is known, by its id. */
export interface KnownClaimer {
  claimer: Claimer
  workerId: number
}

/** The head of the line to the claimers, in order; `refused` are those that can't be built. */
export function newLeases(heads: LockedJob[], claimers: KnownClaimer[], targetOf: TargetOf) {
  const leases: NewLease[] = []
  const refused: { job: LockedJob; why: Stalled }[] = []
  // Of all at once: asking the kernel for each takes longer than the rest.
  const random = randomBytes(12 * claimers.length).toString('hex')
  for (const job of heads) {
    const known = claimers[leases.length]
    if (!known) break
    const target = targetFor(job, targetOf)
    if (target instanceof Stalled) refused.push({ job, why: target })
    else
      leases.push(newLease(job, known, { target, random: random.slice(24 * leases.length, 24 * leases.length + 24) }))
  }
  return { leases, refused }
}

function targetFor(job: LockedJob, targetOf: TargetOf): string | Stalled {
  try {
    return JSON.stringify(targetOf(job))
  } catch (error) {
    if (error instanceof Stalled) return error
    throw error
  }
}

function newLease(
  job: LockedJob,
  { claimer, workerId }: KnownClaimer,
  { target, random }: { target: string; random: string },
): NewLease {
  const claims = job.claims + 1
  return {
    claimer,
    workerId,
    target,
    digest: hash('sha256', target).slice(0, 32),
    job: { ...job, phase: 'Running', worker: claimer.worker, claims, attempt: job.attempt + 1, target },
    token: `${claims}-${random}`,
  }
}

/** Index: PRIMARY of ready. */
export function lineLeft(jobs: LockedJob[]): Statement {
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

/** Keeps the targets that aren't known to be in the table. Index: PRIMARY of target. */
export function targetsKept(leases: NewLease[], known: ReadonlySet<string>): Statement[] {
  const fresh = new Map(leases.filter(({ digest }) => !known.has(digest)).map(({ digest, target }) => [digest, target]))
  if (fresh.size === 0) return []
  // In one order everywhere, so that two turns with the same new ones don't lock each other out.
  const rows = [...fresh].sort().map(([digest, target]) => [Buffer.from(digest, 'hex'), target])
  return [['INSERT IGNORE INTO target (digest, value) VALUES ?', [rows]]]
}

/** Index: by_job of slot. */
export function leasesGiven(leases: NewLease[]): Statement {
  const { table, value } = given(
    ['job_id', 'worker_id', 'poll_id', 'token', 'digest'],
    leases.map(({ job, workerId, claimer, token, digest }) => ({
      ...{ job_id: job.id, worker_id: workerId, poll_id: claimer.pollId, token, digest },
    })),
  )
  return [
    `UPDATE ${table} STRAIGHT_JOIN slot ON slot.job_id = given.job_id
     SET slot.worker = given.worker_id, slot.poll_id = given.poll_id, slot.token = given.token,
       slot.target = UNHEX(given.digest), slot.claimed_at_ms = ${nowMs}, slot.seen_at_ms = ${nowMs}`,
    [value],
  ]
}
