import type { Fenced, Stalled } from '../api/errors.ts'
import type { JobClaim } from '../api/workerApi.ts'
import type { Database, Statement, Transaction } from '../runtime/sql.ts'
import {
  type Claim,
  type Claimer,
  claimedBefore,
  hear,
  leasesGiven,
  lineLeft,
  newLeases,
  pollOf,
  type TargetOf,
  targetsKept,
} from './claim.ts'
import { end } from './end.ts'
import { endLeases, endsRecorded, type Finish, type Outcome } from './finish.ts'
import { jobsLocked, jobsOf, type LockedJob, readyLocked } from './job.ts'
import { putBack } from './lease.ts'
import { type LockedPipeline, pipelinesLocked, promote, slotsFreed } from './slots.ts'
import { type LockedWorker, workersLocked } from './workers.ts'

export interface Turn {
  finishes?: Finish[]
  /** Each gets a job, as far as they go. */
  claimers?: Claimer[]
  targetOf?: TargetOf
  /** Digests of targets that are known to be in the table; those that this turn put there are added. */
  kept?: Set<string>
}

export interface TurnAnswers {
  /** For each finish, in their order: why it is refused. */
  refusals: (Fenced | undefined)[]
  /** For each claimer, in their order. A worker that is draining gets nothing; one that is unknown must be heard first. */
  claims: (Claim | 'draining' | 'unknown' | undefined)[]
  /** There may be more in line. */
  more: boolean
}

/**
 * Finishes and claims in one transaction, whatever their number: it is the round trips and the commit that they cost. Two
 * round trips: locks, then changes by key with the commit behind them. What is claimed is the head of `ready` that nobody
 * else is taking (SKIP LOCKED, READ COMMITTED). Asking again with the same pollId gives the same job again, and a finish
 * that was accepted is accepted again, so a lost answer costs nothing.
 */
export async function takeTurn(database: Database, turn: Turn): Promise<TurnAnswers> {
  try {
    return await database.transaction((sql) => play(sql, turn), { idempotent: true })
  } catch (error) {
    if (!isDuplicate(error)) throw error
    // Somebody asks again, which is rare: only now is it worth looking first.
    const { claimers = [] } = turn
    const before = await claimedBefore(database, claimers)
    if (before.size === 0) throw error
    const rest = await takeTurn(database, { ...turn, claimers: claimers.filter((one) => !before.has(pollOf(one))) })
    const others = rest.claims.values()
    return { ...rest, claims: claimers.map((one) => before.get(pollOf(one)) ?? others.next().value) }
  }
}

/** The next job, leased to this worker; undefined when there is none. */
export async function claim(database: Database, claimer: Claimer, targetOf?: TargetOf): Promise<Claim | undefined> {
  await hear(database, [claimer])
  const { claims } = await takeTurn(database, { claimers: [claimer], ...(targetOf && { targetOf }) })
  const [taken] = claims
  if (typeof taken === 'object') return taken
  return (await claimedBefore(database, [claimer])).get(pollOf(claimer))
}

/** Ends the lease with what came of it. Throws Fenced. */
export async function finish(database: Database, claim: JobClaim, outcome: Outcome): Promise<void> {
  const { refusals } = await takeTurn(database, { finishes: [{ claim, outcome }] })
  if (refusals[0]) throw refusals[0]
}

const isDuplicate = (error: unknown) => (error as { errno?: unknown }).errno === 1062

async function play(
  sql: Transaction,
  { finishes = [], claimers = [], targetOf = () => null, kept = new Set() }: Turn,
): Promise<TurnAnswers> {
  const ids = finishes.map(({ claim }) => claim.jobId)
  const names = [...new Set(claimers.map(({ worker }) => worker))]
  const locks: Statement[] = [
    ...(ids.length > 0 ? [pipelinesLocked(ids), jobsLocked(ids)] : []),
    ...(names.length > 0 ? [workersLocked(names), readyLocked(claimers.length)] : []),
  ]
  const answers = await sql.all(locks)
  const [pipelines, held] = ids.length > 0 ? answers.splice(0, 2) : []
  const [workers = [], ready] = answers

  const ends = endLeases(finishes, new Map(jobsOf(held).map((job) => [job.id, job])))
  const known = new Map((workers as unknown as LockedWorker[]).map((worker) => [worker.name, worker]))
  const awake = claimers.flatMap((claimer) => {
    const worker = known.get(claimer.worker)
    return worker && worker.draining === 0 ? [{ claimer, workerId: worker.id }] : []
  })
  const heads = jobsOf(ready)
  const { leases, refused } = newLeases(heads, awake, targetOf)
  const left = [...leases.map(({ job }) => job), ...refused.map(({ job }) => job)]
  const over = ends.over.map(({ job }) => job.id)
  const changes = [
    ...(over.length > 0 ? [...endsRecorded(ends.over), slotsFreed(over)] : []),
    ...(left.length > 0 ? [lineLeft(left)] : []),
    ...targetsKept(leases, kept),
    ...(leases.length > 0 ? [leasesGiven(leases)] : []),
  ]
  const waiting = over.length > 0 ? ((pipelines ?? []) as unknown as LockedPipeline[]).filter(({ waits }) => waits) : []
  const rest = waiting.length + ends.handedBack.length + refused.length
  if (rest === 0) {
    await sql.commitWith(changes)
    for (const { digest } of leases) kept.add(digest)
  } else {
    if (changes.length > 0) await sql.all(changes)
    await settle(sql, { waiting, handedBack: ends.handedBack, refused })
  }
  const claims = new Map(leases.map(({ claimer, job, token }) => [pollOf(claimer), { job, token }]))
  return {
    refusals: ends.refusals,
    claims: claimers.map((one) => {
      const worker = known.get(one.worker)
      if (!worker) return 'unknown'
      return worker.draining === 0 ? claims.get(pollOf(one)) : 'draining'
    }),
    more: (awake.length > 0 && heads.length >= awake.length) || rest > 0,
  }
}

interface Rest {
  waiting: LockedPipeline[]
  handedBack: LockedJob[]
  refused: { job: LockedJob; why: Stalled }[]
}

async function settle(sql: Transaction, { waiting, handedBack, refused }: Rest): Promise<void> {
  for (const pipeline of waiting) await promote(sql, pipeline)
  for (const job of handedBack) await putBack(sql, job, 'handed_back')
  for (const { job, why } of refused) await end(sql, job, { phase: 'Failed', code: why.code, message: why.message })
}
