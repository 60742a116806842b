import { ShoalError, Stalled } from '../api/errors.ts'
import type { ClaimedJob, FinishRequest } from '../api/workerApi.ts'
import type { Logger } from '../runtime/log.ts'
import { putFiles, runBuild } from './build.ts'
import { fetchCommit } from './checkout.ts'
import { deliver } from './deliver.ts'
import type { Isolation } from './isolation.ts'
import type { JobLog } from './jobLog.ts'
import { type Lease, LeaseLost } from './lease.ts'
import { removeLeftovers } from './leftovers.ts'
import { lendCache } from './pipelineCache.ts'
import { limitReached } from './sandbox.ts'
import type { Shelf } from './shelf.ts'
import { limitMet } from './usage.ts'
import { giveTo, type JobFolder, type Workspace } from './workspace.ts'

export interface JobOptions {
  job: ClaimedJob
  lease: Lease
  log: JobLog
  place: BuildPlace
  /** Aborted with Stopped or LeaseLost. */
  signal: AbortSignal
}

/** Where a worker builds, and what it keeps between builds. */
export interface BuildPlace {
  workspace: Workspace
  isolation: Isolation
  /** None where builds run as ourselves: they could change what others build from. */
  shelf: Shelf | undefined
  log: Logger
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
  const { job, log, place, signal } = options
  const { uid } = place.isolation
  try {
    await using cache = place.shelf && uid !== undefined ? await lendCache(place.shelf, job, uid) : undefined
    if (place.shelf && uid !== undefined && !cache) log.note('another job has the cache: this one begins with none')
    // Removed before the cache is taken back: what both have is then the cache's alone.
    await using folder = await place.workspace.job(uid)
    await build(options, folder, cache?.path ?? folder.cache)
    return { result: 'Built' }
  } catch (error) {
    if (error instanceof LeaseLost) throw error
    if (signal.reason instanceof LeaseLost) throw signal.reason
    if (signal.reason instanceof Stopped) return signal.reason.outcome
    const code = error instanceof ShoalError ? error.code : 'Internal'
    const message = error instanceof Error ? error.message : String(error)
    log.note(`${code}: ${message}`)
    const said = code.startsWith('Build') ? log.lastOutput(lastOutputBytes) : ''
    return { result: 'Failed', code, message: log.mask(said === '' ? message : `${message}\n${said}`).slice(0, 4000) }
  }
}

async function build(options: JobOptions, folder: JobFolder, cache: string): Promise<void> {
  const { job, lease, log, place, signal } = options
  const { isolation } = place
  log.note(`attempt ${job.attempt}: fetching ${job.commit} (${job.ref})`)
  await fetchWithin(options, folder)
  lease.check()
  if (isolation.uid !== undefined) await giveTo(folder.checkout, isolation.uid)
  const inside = {
    ...{ job, folder, cache, isolation, signal },
    onOutput: (bytes: Buffer) => log.output(bytes),
    check: () => lease.check(),
  }
  await putFiles(inside)
  log.note(`running ${job.build.command.join(' ')}`)
  try {
    await runBuild(inside)
  } finally {
    if (isolation.uid !== undefined) await removeLeftovers(isolation.uid)
  }
  log.note(`built; uploading ${job.build.output}`)
  const { sizeBytes, digest } = await deliver({ job, checkout: folder.checkout, lease, signal })
  log.note(`uploaded ${sizeBytes} bytes, ${digest}`)
}

/** What a source sends may be without end too. */
async function fetchWithin({ job, place, signal }: JobOptions, { path, checkout, home }: JobFolder): Promise<void> {
  const { isolation, shelf, log } = place
  const ended = new AbortController()
  const stop = AbortSignal.any([signal, ended.signal])
  const fetched = fetchCommit({ job, dir: checkout, shelf, log, signal: stop })
  const watched = { build: { home }, folders: [path], maxDiskBytes: isolation.limits.maxDiskBytes }
  const over = limitMet(watched, stop).then((limit) => {
    throw new Stalled('BuildLimit', `the source was not fetched: ${limitReached(limit, isolation.limits)}`)
  })
  try {
    await Promise.race([fetched, over])
  } finally {
    ended.abort()
    await Promise.allSettled([fetched, over])
  }
}
