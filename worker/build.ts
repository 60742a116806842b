import { type ChildProcess, spawn } from 'node:child_process'
import type { Readable } from 'node:stream'
import { setTimeout as delay } from 'node:timers/promises'
import { Stalled } from '../api/errors.ts'
import { durationMs } from '../api/meta.ts'
import type { ClaimedJob } from '../api/workerApi.ts'
import { type BuildProcesses, endWithUs, killBuild } from './processes.ts'
import type { JobFolder } from './workspace.ts'

export interface BuildOptions {
  job: ClaimedJob
  folder: JobFolder
  uid: number | undefined
  /** Everything it prints, in the order it prints it. */
  onOutput: (bytes: Buffer) => void
  /** Called before whatever the build says or does is taken in; throws when it is no longer ours. */
  check: () => void
  signal: AbortSignal
}

/** Output that a process outside the group still holds open is not waited for. */
const drainMs = 2000

/**
 * Runs the job's command in its checkout, in a session and environment of its own. When it returns or throws, every
 * process of the build is gone.
 *
 * @throws Stalled `BuildFailed`, `BuildTimeout`; what `check` throws; the signal's reason
 */
export async function runBuild(options: BuildOptions): Promise<void> {
  const { job, folder, uid, signal, check } = options
  check()
  // The shell makes one stream of both, in order, and says what is wrong when the command isn't there.
  const child = spawn('/bin/sh', ['-c', 'exec "$@" 2>&1', 'sh', ...job.build.command], {
    cwd: folder.checkout,
    env: environment(job, folder),
    stdio: ['ignore', 'pipe', 'ignore'],
    detached: true,
    ...(uid !== undefined && { uid, gid: uid }),
  })
  const processes: BuildProcesses = { uid, group: child.pid, home: folder.home }
  if (child.pid !== undefined) endWithUs(processes)
  const timeoutMs = durationMs(job.build.timeout)
  const ended = new AbortController()
  try {
    const outcome = await Promise.race([
      exitOf(child, options),
      abortion(AbortSignal.any([signal, ended.signal])),
      delay(timeoutMs, 'late' as const, { signal: ended.signal }),
    ])
    check()
    if (outcome === 'late')
      throw new Stalled('BuildTimeout', `${job.build.command[0]} ran longer than ${job.build.timeout}`)
    if (outcome !== 'code 0') throw new Stalled('BuildFailed', `${job.build.command[0]} ended with ${outcome}`)
  } finally {
    ended.abort()
    await killBuild(processes)
    if (child.stdout) await drained(child.stdout)
  }
}

/** Only what is named here: nothing of this process' own environment but PATH. */
function environment(job: ClaimedJob, { home, temporary }: JobFolder): Record<string, string> {
  return {
    PATH: process.env.PATH ?? '/usr/local/bin:/usr/bin:/bin',
    TMPDIR: temporary,
    LANG: 'C.UTF-8',
    CI: '1',
    SHOAL_COMMIT: job.commit,
    SHOAL_REF: job.ref,
    ...Object.fromEntries(job.build.env.map(({ name, value }) => [name, value])),
    // Not to be changed: killBuild knows processes by it.
    HOME: home,
  }
}

function exitOf(child: ChildProcess, { onOutput, check }: BuildOptions): Promise<string> {
  return new Promise((resolve, reject) => {
    const whileOurs = (act: () => void) => {
      try {
        check()
        act()
      } catch (error) {
        reject(error)
      }
    }
    child.stdout?.on('data', (chunk: Buffer) => whileOurs(() => onOutput(chunk)))
    child.stdout?.on('error', () => undefined)
    child.once('error', reject)
    child.once('exit', (code, signal) => whileOurs(() => resolve(signal ?? `code ${code}`)))
  })
}

function abortion(signal: AbortSignal): Promise<never> {
  return new Promise((_, reject) => {
    if (signal.aborted) reject(signal.reason)
    else signal.addEventListener('abort', () => reject(signal.reason), { once: true })
  })
}

/** Reads what was printed before the end. */
async function drained(stream: Readable): Promise<void> {
  if (stream.closed) return
  const late = AbortSignal.timeout(drainMs)
  await Promise.race([new Promise((resolve) => stream.once('close', resolve)), abortion(late)]).catch(() => undefined)
  stream.destroy()
}
