import { ShoalError } from '../api/errors.ts'
import type { ClaimedJob, FinishRequest } from '../api/workerApi.ts'
import { runBuild } from './build.ts'
import { checkOut } from './checkout.ts'
import { deliver } from './deliver.ts'
import type { JobLog } from './jobLog.ts'
import { type Lease, LeaseLost } from './lease.ts'
import { giveTo, type JobFolder, type Workspace } from './workspace.ts'

export interface JobOptions {
  job: ClaimedJob
  lease: Lease
  log: JobLog
  workspace: Workspace
  uid: number | undefined
  /** Aborted with Stopped or LeaseLost. */
  signal: AbortSignal
}

type Outcome = FinishRequest['outcome']

/** Why a job was ended before its time. */
export class Stopped extends Error {
  override readonly name = 'Stopped'
  readonly outcome: Outcome
  constructor(outcome: Outcome) {
    super(`stopped: ${outcome.result}`)
    this.outcome = outcome
  }
}

const lastOutputBytes = 2000

/**
 * One job from checkout to upload: what to tell the hub of it. When this returns, its processes and its folder are
 * gone. Throws LeaseLost: then the hub is told nothing.
 */
export async function runJob(options: JobOptions): Promise<Outcome> {
  const { log, workspace, uid, signal } = options
  try {
    await using folder = await workspace.job(uid)
    await build(options, folder)
    return { result: 'Built' }
  } catch (error) {
    if (error instanceof LeaseLost) throw error
    if (signal.reason instanceof LeaseLost) throw signal.reason
    if (signal.reason instanceof Stopped) return signal.reason.outcome
    const code = error instanceof ShoalError ? error.code : 'Internal'
    const message = error instanceof Error ? error.message : String(error)
    log.note(`${code}: ${message}`)
    const said = code === 'BuildFailed' || code === 'BuildTimeout' ? log.lastOutput(lastOutputBytes) : ''
    return { result: 'Failed', code, message: log.mask(said === '' ? message : `${message}\n${said}`).slice(0, 4000) }
  }
}

async function build({ job, lease, log, uid, signal }: JobOptions, folder: JobFolder): Promise<void> {
  log.note(`attempt ${job.attempt}: fetching ${job.commit} (${job.ref})`)
  await checkOut(job, folder.checkout, signal)
  lease.check()
  if (uid !== undefined) await giveTo(folder.checkout, uid)
  log.note(`running ${job.build.command.join(' ')}`)
  const onOutput = (bytes: Buffer) => log.output(bytes)
  await runBuild({ job, folder, uid, onOutput, check: () => lease.check(), signal })
  log.note(`built; uploading ${job.build.output}`)
  const { sizeBytes, digest } = await deliver({ job, checkout: folder.checkout, lease, signal })
  log.note(`uploaded ${sizeBytes} bytes, ${digest}`)
}
