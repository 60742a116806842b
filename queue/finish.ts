import { Fenced } from '../api/errors.ts'
import type { JobClaim } from '../api/workerApi.ts'
import type { Statement } from '../runtime/sql.ts'
import { type End, outcomesRecorded } from './end.ts'
import type { LockedJob } from './job.ts'
import { refusal } from './lease.ts'

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

export interface EndedLeases {
  /** For each finish, in their order: why it is refused. */
  refusals: (Fenced | undefined)[]
  over: Ended[]
  handedBack: LockedJob[]
}

/** What becomes of these leases; their jobs, which are locked, are by id. */
export function endLeases(finishes: Finish[], jobs: Map<number, LockedJob>): EndedLeases {
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
export function endsRecorded(over: Ended[]): Statement[] {
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
