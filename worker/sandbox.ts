import { type ChildProcess, spawn } from 'node:child_process'
import { writeFile } from 'node:fs/promises'
import type { Readable } from 'node:stream'
import { setTimeout as delay } from 'node:timers/promises'
import type { Isolation } from './isolation.ts'
import { formatBytes, type Limits } from './limits.ts'
import { type BuildProcesses, endWithUs, killBuild } from './processes.ts'
import { type Limit, limitMet, limitWasMet, type Watched } from './usage.ts'

export interface Command {
  args: string[]
  /** The whole environment. Names that no shell knows are left out. */
  env: Record<string, string>
  cwd: string
  /** The HOME of its processes, by which they are known where they have no uid of their own. */
  home: string
  /** Where it may write to. */
  folders: string[]
  timeoutMs: number
  /** Everything it prints, in the order it prints it. */
  onOutput: (bytes: Buffer) => void
  /** Called before whatever it says or does is taken in; throws when it is no longer ours. */
  check: () => void
  signal: AbortSignal
}

/** How a command ended. */
export interface Ending {
  /** `code 0`, `SIGKILL`; undefined when we ended it. */
  exit?: string
  isLate?: boolean
  /** The limit it met, for people. */
  limit?: string
}

/** Output that a process outside the group still holds open is not waited for. */
const drainMs = 2000

/**
 * Runs a command that nobody trusts, in a session and environment of its own, within limits. When it returns or throws,
 * every process of it is gone. Throws what `check` throws; the signal's reason.
 */
export async function runInside(isolation: Isolation, command: Command): Promise<Ending> {
  const { uid, limits, watches } = isolation
  const { check, timeoutMs, home } = command
  check()
  await using cgroup = await isolation.makeCgroup()
  const child = start(isolation, command)
  const build: BuildProcesses = { uid, group: child.pid, home, cgroup }
  const ended = new AbortController()
  const stop = AbortSignal.any([command.signal, ended.signal])
  try {
    const exit = exitOf(child, command)
    exit.catch(() => undefined)
    if (child.pid !== undefined) {
      endWithUs(build)
      await cgroup.join(child.pid)
      // Where the machine is out of memory the build is killed, not its worker.
      await writeFile(`/proc/${child.pid}/oom_score_adj`, '1000').catch(() => undefined)
    }
    child.stdin?.on('error', () => undefined).end(script(command.env))
    const watched: Watched = {
      build,
      folders: [...command.folders, ...isolation.sharedFolders],
      maxDiskBytes: limits.maxDiskBytes,
      maxProcesses: watches.pids ? limits.maxProcesses : undefined,
      maxMemoryBytes: watches.memory ? limits.maxMemoryBytes : undefined,
    }
    const { met, ...ending }: Ending & { met?: Limit } = await Promise.race([
      exit.then((how) => ({ exit: how })),
      limitMet(watched, stop).then((met) => ({ met })),
      delay(timeoutMs, { isLate: true }, { signal: ended.signal }),
      abortion(stop),
    ])
    check()
    // Also of a command that says all is well: it may have missed what the kernel refused or killed.
    const limit = met ?? (await limitWasMet(watched, stop))
    return { ...ending, ...(limit && { limit: limitReached(limit, limits) }) }
  } finally {
    ended.abort()
    await killBuild(build)
    if (child.stdout) await drained(child.stdout)
  }
}

/**
 * A shell that waits for what it is to do, so that nothing of the command, whose environment may say what else is run,
 * has run before it is in its cgroup. It makes one stream of both outputs, in order, and says what is wrong when the
 * command isn't there.
 */
function start({ uid, starter }: Isolation, { args, cwd, home }: Command): ChildProcess {
  return spawn('/bin/sh', ['-c', 'exec "$@" 2>&1', 'sh', ...starter, '/bin/sh', '-s', '--', ...args], {
    cwd,
    env: { PATH: process.env.PATH, HOME: home },
    stdio: ['pipe', 'pipe', 'ignore'],
    detached: true,
    ...(uid !== undefined && { uid, gid: uid }),
  })
}

/** By standard input: on a command line everybody could read it. */
function script(env: Record<string, string>): string {
  const exports = Object.entries(env)
    .filter(([name]) => /^[A-Za-z_][A-Za-z0-9_]*$/.test(name))
    .map(([name, value]) => `export ${name}='${value.replaceAll("'", "'\\''")}'\n`)
  return `${exports.join('')}exec "$@" </dev/null\n`
}

/** For people. */
export const limitReached = (limit: Limit, { maxProcesses, maxMemoryBytes, maxDiskBytes }: Limits): string =>
  ({
    pids: `limit of ${maxProcesses} processes reached`,
    memory: `memory limit ${formatBytes(maxMemoryBytes)} reached`,
    disk: `disk limit ${formatBytes(maxDiskBytes)} reached`,
    floor: 'the worker’s disk is nearly full',
  })[limit]

function exitOf(child: ChildProcess, { onOutput, check }: Command): Promise<string> {
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
