import { ShoalError, Stalled } from '../api/errors.ts'
import { durationMs } from '../api/meta.ts'
import type { ClaimedJob } from '../api/workerApi.ts'
import type { Isolation } from './isolation.ts'
import { type Command, runInside } from './sandbox.ts'
import type { JobFolder } from './workspace.ts'

export interface BuildOptions extends Pick<Command, 'onOutput' | 'check' | 'signal'> {
  job: ClaimedJob
  folder: JobFolder
  /** The pipeline's cache. */
  cache: string
  isolation: Isolation
}

const checkoutTimeoutMs = 15 * 60_000

/**
 * Puts the job's commit, already fetched, into its checkout: as the build's user and within its limits, since a small
 * commit can hold files without end.
 *
 * @throws Stalled `BuildLimit`; ShoalError `Internal`; what `check` throws; the signal's reason
 */
export async function putFiles(options: BuildOptions): Promise<void> {
  const { job, folder, isolation } = options
  const { exit, limit } = await runInside(isolation, {
    ...options,
    args: ['git', '-c', 'advice.detachedHead=false', 'checkout', '--quiet', '--detach', job.commit],
    env: { GIT_CONFIG_NOSYSTEM: '1', GIT_CONFIG_GLOBAL: '/dev/null', LC_ALL: 'C' },
    cwd: folder.checkout,
    home: folder.home,
    folders: own(folder),
    timeoutMs: checkoutTimeoutMs,
  })
  if (exit === 'code 0' && !limit) return
  const what = `git checkout ${ending(exit)}`
  throw limit ? new Stalled('BuildLimit', `${what}: ${limit}`) : new ShoalError('Internal', what)
}

/**
 * Runs the job's command in its checkout.
 *
 * @throws Stalled `BuildFailed`, `BuildTimeout`, `BuildLimit`; what `check` throws; the signal's reason
 */
export async function runBuild(options: BuildOptions): Promise<void> {
  const { job, folder, cache, isolation } = options
  const { command, timeout } = job.build
  const { exit, isLate, limit } = await runInside(isolation, {
    ...options,
    args: command,
    env: environment(options),
    cwd: folder.checkout,
    home: folder.home,
    folders: [...own(folder), cache],
    timeoutMs: durationMs(timeout),
  })
  if (exit === 'code 0' && !limit) return
  const what = `${command[0]} ${isLate ? `ran longer than ${timeout}` : ending(exit)}`
  if (limit) throw new Stalled('BuildLimit', `${what}: ${limit}`)
  throw new Stalled(isLate ? 'BuildTimeout' : 'BuildFailed', what)
}

const own = ({ checkout, home, temporary }: JobFolder) => [checkout, home, temporary]

const ending = (exit: string | undefined) => (exit === undefined ? 'was ended' : `ended with ${exit}`)

/** Only what is named here: nothing of this process' own environment but PATH. */
function environment({ job, folder, cache }: BuildOptions): Record<string, string> {
  return {
    PATH: process.env.PATH ?? '/usr/local/bin:/usr/bin:/bin',
    TMPDIR: folder.temporary,
    LANG: 'C.UTF-8',
    CI: '1',
    SHOAL_CACHE: cache,
    SHOAL_COMMIT: job.commit,
    SHOAL_REF: job.ref,
    ...Object.fromEntries(job.build.env.map(({ name, value }) => [name, value])),
    // Not to be changed: killBuild knows processes by it.
    HOME: folder.home,
  }
}
