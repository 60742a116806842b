import { Fenced } from '../api/errors.ts'
import type { JobClaim } from '../api/workerApi.ts'
import type { Statement } from '../runtime/sql.ts'
import { given, type Job, nowMs } from './job.ts'
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
  job: Job
  outcome: Outcome
}

export interface EndedLeases {
  /** For each finish, in their order: why it is refused. */
  refusals: (Fenced | undefined)[]
  over: Ended[]
  handedBack: Job[]
}

/** What becomes of these leases; their jobs, which are locked, are by id. */
export function endLeases(finishes: Finish[], jobs: Map<number, Job>): EndedLeases {
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

/** Index: by_job of slot, PRIMARY of job and of replicating. */
export function endsRecorded(over: Ended[]): Statement[] {
  const { table, value } = given(
    ['job_id', 'token', 'phase', 'code', 'message'],
    over.map(({ job, outcome }) => ({ job_id: job.id, token: job.token, ...endOf(outcome) })),
  )
  const built = over.filter(({ outcome }) => outcome.result === 'Built').map(({ job }) => [job.id])
  return [
    // The lease's own words of who and when are kept with the job.
    [
      `UPDATE ${table} STRAIGHT_JOIN slot ON slot.job_id = given.job_id STRAIGHT_JOIN job ON job.id = given.job_id
       SET job.phase = given.phase, job.code = given.code, job.message = given.message, job.finished_token = given.token,
         job.worker = slot.worker, job.started_at_ms = slot.claimed_at_ms, job.target = slot.target,
         job.built_at_ms = ${nowMs}, job.finished_at_ms = IF(given.phase = 'Replicating', NULL, ${nowMs}),
         job.updated_at_ms = ${nowMs}`,
      [value],
    ],
    ...(built.length > 0 ? [['INSERT INTO replicating (job_id) VALUES ?', [built]] satisfies Statement] : []),
  ]
}

function endOf(outcome: Outcome) {
  if (outcome.result === 'Built') return { phase: 'Replicating', code: null, message: null }
  if (outcome.result === 'HandedBack')
    return { phase: 'Cancelled', code: 'Cancelled', message: 'cancelled while its worker stopped' }
  const { code, message } = outcome
  return { phase: code === 'Cancelled' ? 'Cancelled' : 'Failed', code, message: message.slice(0, 4096) }
}
