import { type EventEmitter, once } from 'node:events'
import type { LogEvent } from '../../api/jobApi.ts'
import { findJob, positions } from '../../queue/control.ts'
import type { Job } from '../../queue/job.ts'
import type { Clock } from '../../runtime/clock.ts'
import { type LogSources, readLog } from './logReader.ts'
import { isFinal } from './status.ts'

export interface LogStreamSources extends LogSources {
  /** Emits a job's id when something of it came to this replica. */
  jobs: EventEmitter
  clock: Clock
}

export interface LogRequest {
  namespace: string
  name: string
  /** Where to begin; default: at the beginning of the last attempt. */
  attempt?: number | undefined
  offset?: number | undefined
  /** Go on until the job is over; else what there is of one attempt. */
  follow: boolean
  signal: AbortSignal
}

/** Between two looks at a job that is built: other replicas take its log too. */
const buildingPollMs = 1000
/** The same, while it waits. */
const waitingPollMs = 2000
/** A state is told again so often, so that either end sees when the other is gone. */
const repeatMs = 15_000
/** So much of the line is looked at for the job's position. */
const shownPositions = 100

/** A job's log and states. Ends with a state: when following, a final one; sooner when the signal aborts. */
export async function* logEvents(sources: LogStreamSources, request: LogRequest): AsyncGenerator<LogEvent> {
  const { database, clock } = sources
  const { namespace, name, follow, signal } = request
  let { attempt = 0, offset = 0 } = request
  let told = ''
  let toldAtMs = 0
  while (!signal.aborted) {
    // Before its log, so that what was printed until then is read.
    const job = await findJob(database, namespace, name)
    // Who comes while it waits sees every attempt from then on.
    if (attempt === 0 && job) attempt = told === '' ? job.claims : Math.min(1, job.claims)
    if (attempt > 0 && job) {
      for await (const { text, end } of readLog(sources, { jobId: job.id, attempt, offset }, signal)) {
        offset = end
        yield { type: 'log', attempt, text, end }
      }
    }
    if (follow && job && job.claims > attempt && attempt > 0) {
      const text = `[shoal] the worker of attempt ${attempt} was lost or stopped; attempt ${attempt + 1} begins\n`
      attempt++
      offset = 0
      yield { type: 'log', attempt, text, end: 0 }
      continue
    }
    const state = await stateOf(sources, job)
    const text = JSON.stringify(state)
    if (text !== told || clock.monotonic() - toldAtMs > repeatMs) {
      told = text
      toldAtMs = clock.monotonic()
      yield state
    }
    if (!follow || isFinal(state)) return
    await somethingNew(sources, job, signal)
  }
}

async function stateOf({ database }: LogStreamSources, job: Job | undefined): Promise<LogEvent & { type: 'state' }> {
  // A BuildJob made by hand has its row in a moment.
  if (!job) return { type: 'state', phase: 'Queued', attempt: 0 }
  const { phase, claims, replicated, code, message } = job
  const position =
    phase === 'Queued' ? (await positions(database, shownPositions)).get(`${job.namespace}/${job.name}`) : undefined
  return {
    type: 'state',
    phase,
    attempt: claims,
    ...(position !== undefined && { position }),
    ...(replicated !== null && { replicated }),
    ...(code !== null && { code }),
    ...(message !== null && { message }),
  }
}

/** Waits until this replica hears of the job, or it is time to look. */
async function somethingNew(
  { jobs, clock }: LogStreamSources,
  job: Job | undefined,
  signal: AbortSignal,
): Promise<void> {
  const done = new AbortController()
  const stop = AbortSignal.any([signal, done.signal])
  const waits = [
    clock.sleep(job?.phase === 'Running' ? buildingPollMs : waitingPollMs, stop),
    ...(job ? [once(jobs, String(job.id), { signal: stop })] : []),
  ]
  await Promise.race(waits.map((wait) => wait.catch(() => undefined)))
  done.abort()
}
