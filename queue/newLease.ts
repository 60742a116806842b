import { hash, randomBytes } from 'node:crypto'
import { Stalled } from '../api/errors.ts'
import type { Statement } from '../runtime/sql.ts'
import type { Claim, Claimer } from './claim.ts'
import { given, type LockedJob, nowMs } from './job.ts'

/** What a claim fixes for the job, to be kept as JSON. Throws Stalled when the job can't be built: that ends it. */
export type TargetOf = (job: LockedJob) => unknown

interface NewLease extends Claim {
  claimer: Claimer
  /** Of its worker. */
  workerId: number
  target: string
  /** Of the target: the first half of its SHA-256, in hex. */
  digest: string
}

/** A claimer whose worker is known, by its id. */
interface KnownClaimer {
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
