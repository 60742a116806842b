import { Fenced } from '../api/errors.ts'
import type { JobClaim } from '../api/workerApi.ts'
import type { Statement } from '../runtime/sql.ts'
import { type End, endRecorded } from './end.ts'
import { eachTo, type Job, nowMs } from './job.ts'
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

/** Index: PRIMARY of job and of replicating. */
export function endsRecorded(over: Ended[]): Statement[] {
  const built = over.filter(({ outcome }) => outcome.result === 'Built').map(({ job }) => job)
  const failed = over.filter(({ outcome }) => outcome.result !== 'Built')
  return [
    ...(built.length > 0 ? builtRecorded(built) : []),
    ...failed.map(({ job, outcome }) => endRecorded(job, { ...endOf(outcome), finishedToken: job.token })),
  ]
}

/** What the leases say of who and when is kept with the jobs. */
function builtRecorded(jobs: Job[]): Statement[] {
  const each = (value: (job: Job) => string | number | null) =>
    eachTo(
      'id',
      jobs.map((job) => [job.id, value(job)]),
    )
  const worker = each((job) => job.worker)
  const token = each((job) => job.token)
  const started = each((job) => job.startedAtMs)
  const target = each((job) => job.target)
  return [
    [
      `UPDATE job SET phase = 'Replicating', worker = ${worker.sql}, finished_token = ${token.sql},
         started_at_ms = ${started.sql}, target = ${target.sql}, built_at_ms = ${nowMs}, updated_at_ms = ${nowMs}
       WHERE id IN (?)`,
      [...worker.values, ...token.values, ...started.values, ...target.values, jobs.map(({ id }) => id)],
    ],
    ['INSERT INTO replicating (job_id) VALUES ?', [jobs.map(({ id }) => [id])]],
  ]
}

function endOf(outcome: Outcome): End {
  if (outcome.result !== 'Failed')
    return { phase: 'Cancelled', code: 'Cancelled', message: 'cancelled while its worker stopped' }
  const { code, message } = outcome
  return { phase: code === 'Cancelled' ? 'Cancelled' : 'Failed', code, message }
}
