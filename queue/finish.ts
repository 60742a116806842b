import { Fenced } from '../api/errors.ts'
import type { JobClaim } from '../api/workerApi.ts'
import type { Database, Statement, Transaction } from '../runtime/sql.ts'
import { type End, outcomesRecorded } from './end.ts'
import { jobsLocked, jobsOf, type LockedJob } from './job.ts'
import { putBack, refusal } from './lease.ts'
import { type LockedPipeline, pipelinesLocked, promote, slotsFreed } from './slots.ts'

export type Outcome =
  | { result: 'Built' }
  | { result: 'Failed'; code: string; message: string }
  | { result: 'HandedBack' }

export interface Finish {
  claim: JobClaim
  outcome: Outcome
}

interface Ended {
  job: LockedJob
  outcome: Outcome
}

export interface Finished {
  /** For each finish, in their order: why it is refused. */
  refusals: (Fenced | undefined)[]
  /** Jobs may have come into line. */
  more: boolean
}

/**
 * Ends leases in one transaction, whatever their number, as `takeClaims` gives them. One that was accepted is accepted
 * again, so a lost answer costs nothing.
 */
export const takeFinishes = (database: Database, finishes: Finish[]): Promise<Finished> =>
  database.transaction((sql) => take(sql, finishes), { idempotent: true })

/** Ends the lease with what came of it. Throws Fenced. */
export async function finish(database: Database, claim: JobClaim, outcome: Outcome): Promise<void> {
  const { refusals } = await takeFinishes(database, [{ claim, outcome }])
  if (refusals[0]) throw refusals[0]
}

async function take(sql: Transaction, finishes: Finish[]): Promise<Finished> {
  const ids = finishes.map(({ claim }) => claim.jobId)
  const [pipelines, jobs] = await sql.all([pipelinesLocked(ids), jobsLocked(ids)])
  const { refusals, over, handedBack } = endLeases(finishes, new Map(jobsOf(jobs).map((job) => [job.id, job])))
  const changes = over.length > 0 ? [...endsRecorded(over), slotsFreed(over.map(({ job }) => job.id))] : []
  const freed = over.length > 0 ? (pipelines as unknown as LockedPipeline[]) : []
  const waiting = freed.filter(({ waits }) => waits)
  const more = waiting.length + handedBack.length > 0
  if (!more) await sql.commitWith(changes)
  else {
    if (changes.length > 0) await sql.all(changes)
    for (const pipeline of waiting) await promote(sql, pipeline)
    for (const job of handedBack) await putBack(sql, job, 'handed_back')
  }
  return { refusals, more }
}

interface EndedLeases {
  refusals: (Fenced | undefined)[]
  over: Ended[]
  handedBack: LockedJob[]
}

/** What becomes of these leases; their jobs, which are locked, are by id. */
function endLeases(finishes: Finish[], jobs: Map<number, LockedJob>): EndedLeases {
  const ended: Ended[] = []
  const refusals = finishes.map(({ claim, outcome }) => {
    const job = jobs.get(claim.jobId)
    if (job?.finishedToken === claim.token) return undefined
    if (job?.token !== claim.token) return refusal(claim)
    if (outcome.result === 'Built' && job.facts === null)
      return new Fenced(`job ${claim.jobId}: nothing was uploaded under this token`)
    job.finishedToken = claim.token
    ended.push({ job, outcome })
    return undefined
  })
  const isOver = ({ job, outcome }: Ended) => outcome.result !== 'HandedBack' || job.cancel
  return {
    refusals,
    over: ended.filter(isOver),
    handedBack: ended.filter((one) => !isOver(one)).map(({ job }) => job),
  }
}

/** One statement for what was built, one for each that was not. */
function endsRecorded(over: Ended[]): Statement[] {
  const built = over.filter(({ outcome }) => outcome.result === 'Built').map(({ job }) => job.id)
  const failed = over.filter(({ outcome }) => outcome.result !== 'Built')
  return [
    ...(built.length > 0 ? [outcomesRecorded(built, { phase: 'Replicating' })] : []),
    ...failed.map(({ job, outcome }) => outcomesRecorded([job.id], endOf(outcome))),
  ]
}

function endOf(outcome: Outcome): End {
  if (outcome.result !== 'Failed')
    return { phase: 'Cancelled', code: 'Cancelled', message: 'cancelled while its worker stopped' }
  const { code, message } = outcome
  return { phase: code === 'Cancelled' ? 'Cancelled' : 'Failed', code, message }
}
