import { randomBytes } from 'node:crypto'
import { Stalled } from '../api/errors.ts'
import type { Sql, Statement } from '../runtime/sql.ts'
import { findJobs } from './control.ts'
import { eachTo, given, type Job, nowMs } from './job.ts'

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

/** What these polls were given when they asked before, by `pollOf`. Index: by_poll of slot, PRIMARY of job. */
export async function claimedBefore(sql: Sql, claimers: Claimer[]): Promise<Map<string, Claim>> {
  if (claimers.length === 0) return new Map()
  const { table, value } = given(
    ['worker', 'poll_id'],
    claimers.map(({ worker, pollId }) => ({ worker, poll_id: pollId })),
  )
  const rows = await sql.query<{ jobId: number; worker: string; pollId: number; token: string }>(
    `SELECT slot.job_id AS jobId, slot.worker, slot.poll_id AS pollId, slot.token
     FROM ${table} STRAIGHT_JOIN slot ON slot.worker = given.worker AND slot.poll_id = given.poll_id`,
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

type NewLease = Claim & { claimer: Claimer; target: string }

/** The head of the line to the claimers, in order; `refused` are those that can't be built. */
export function newLeases(heads: Job[], claimers: Claimer[], targetOf: TargetOf) {
  const leases: NewLease[] = []
  const refused: { job: Job; why: Stalled }[] = []
  for (const job of heads) {
    const claimer = claimers[leases.length]
    if (!claimer) break
    const target = targetFor(job, targetOf)
    if (target instanceof Stalled) refused.push({ job, why: target })
    else leases.push(newLease(job, claimer, target))
  }
  return { leases, refused }
}

function targetFor(job: Job, targetOf: TargetOf): string | Stalled {
  try {
    return JSON.stringify(targetOf(job))
  } catch (error) {
    if (error instanceof Stalled) return error
    throw error
  }
}

const newLease = (job: Job, claimer: Claimer, target: string): NewLease => ({
  claimer,
  target,
  job: { ...job, phase: 'Running', worker: claimer.worker, claims: job.claims + 1, attempt: job.attempt + 1, target },
  token: `${job.claims + 1}-${randomBytes(12).toString('hex')}`,
})

/** Index: PRIMARY of ready. */
export function lineLeft(jobs: Job[]): Statement {
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
export function leasesGiven(leases: NewLease[]): Statement {
  const each = (value: (lease: NewLease) => string | number) =>
    eachTo(
      'job_id',
      leases.map((lease) => [lease.job.id, value(lease)]),
    )
  const worker = each(({ claimer }) => claimer.worker)
  const token = each((lease) => lease.token)
  const poll = each(({ claimer }) => claimer.pollId)
  const target = each((lease) => lease.target)
  return [
    `UPDATE slot SET worker = ${worker.sql}, token = ${token.sql}, poll_id = ${poll.sql}, target = ${target.sql},
       claimed_at_ms = ${nowMs}, seen_at_ms = ${nowMs} WHERE job_id IN (?)`,
    [...worker.values, ...token.values, ...poll.values, ...target.values, leases.map(({ job }) => job.id)],
  ]
}
