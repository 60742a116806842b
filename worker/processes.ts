import { spawn } from 'node:child_process'
import { readdirSync, readFileSync, readlinkSync } from 'node:fs'
import { setTimeout as delay } from 'node:timers/promises'
import { Transient } from '../api/errors.ts'
import type { Cgroup } from './cgroup.ts'

/** A build's processes: by their cgroup and the uid that only they have, else by what their start left in them. */
export interface BuildProcesses {
  cgroup?: Cgroup | undefined
  /** Root's workers have one per build slot; never 0. */
  uid?: number | undefined
  /** The process group of the build's first process. */
  group?: number | undefined
  /** The build's HOME, below which nobody else works. */
  home: string
}

const patienceMs = 10_000
/** Until they are reaped, zombies count as processes of the next build. Where nobody does that, we don't wait for ever. */
const reapedMs = 3000

/** Kills every process of a build until there is none. Throws Transient `Timeout` when some can't be killed. */
export async function killBuild(build: BuildProcesses): Promise<void> {
  const began = performance.now()
  await build.cgroup?.stop()
  if (build.group !== undefined) kill(-build.group)
  for (let round = 0; ; round++) {
    const all = [...processesOf(build)]
    const pids = all.filter(([, status]) => isAlive(status)).map(([pid]) => pid)
    const tookMs = performance.now() - began
    if (all.length === 0 || (pids.length === 0 && tookMs > reapedMs)) return
    for (const pid of pids) kill(pid)
    // Processes that fork faster than we look are killed in one go, by the kernel.
    if (round > 0 && pids.length > 0 && build.uid !== undefined) await killAllOf(build.uid)
    if (tookMs > patienceMs) throw new Transient('Timeout', `${pids.length} processes of the build can’t be killed`)
    await delay(Math.min(5 * 2 ** round, 200))
  }
}

/** The processes of a build, with the text of /proc/<pid>/status. Zombies too, until whoever started them reaps them. */
export function processesOf({ cgroup, uid, home }: BuildProcesses): Map<number, string> {
  const inCgroup = new Set(cgroup?.pids())
  // By real uid too, so that programs which change the effective one are found.
  const owned = new RegExp(`^Uid:\\t(${uid}\\t|.*\\t${uid}\\t)`, 'm')
  const belongs = (pid: number, status: string) =>
    inCgroup.has(pid) || (uid === undefined ? isStartedBy(home, pid) : owned.test(status))
  return new Map(
    readdirSync('/proc')
      .filter((entry) => /^\d+$/.test(entry) && Number(entry) !== process.pid)
      .map((entry) => [Number(entry), read(`/proc/${entry}/status`)] as const)
      .filter(([pid, status]) => status !== '' && belongs(pid, status)),
  )
}

/** Zombies run nothing, and can't be killed. */
const isAlive = (status: string) => !/^State:\t[ZX]/m.test(status)

/** Without a uid of its own, a process that left the group still has the environment or the folder it began with. */
const isStartedBy = (home: string, pid: number) =>
  read(`/proc/${pid}/environ`).split('\0').includes(`HOME=${home}`) || folderOf(pid).startsWith(`${home}/`)

/** kill(-1) as that user: one system call that no fork comes between. */
function killAllOf(uid: number): Promise<void> {
  if (!(uid > 0)) throw new RangeError(`not a uid for builds: ${uid}`)
  return new Promise((resolve) => {
    const child = spawn('/bin/sh', ['-c', 'kill -s KILL -- -1'], { uid, gid: uid, cwd: '/', stdio: 'ignore', env: {} })
    child.once('error', () => resolve())
    child.once('exit', () => resolve())
  })
}

/**
 * Ends the build if this process dies before it: a shell, as the build's user, whose input ends when we do. Killed with
 * the build's other processes.
 */
export function endWithUs({ uid, group, home }: BuildProcesses): void {
  const target = uid === undefined ? `-${group}` : '-1'
  if (uid === undefined ? group === undefined : !(uid > 0)) return
  const child = spawn('/bin/sh', ['-c', 'read _; kill -s KILL -- "$1"', 'sh', target], {
    ...(uid !== undefined && { uid, gid: uid }),
    cwd: '/',
    detached: true,
    stdio: ['pipe', 'ignore', 'ignore'],
    env: { HOME: home },
  })
  child.on('error', () => undefined)
  child.stdin?.on('error', () => undefined)
  child.unref()
}

function kill(pid: number): void {
  try {
    process.kill(pid, 'SIGKILL')
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ESRCH') throw error
  }
}

function read(path: string): string {
  try {
    return readFileSync(path, 'utf8')
  } catch {
    return ''
  }
}

function folderOf(pid: number): string {
  try {
    return readlinkSync(`/proc/${pid}/cwd`)
  } catch {
    return ''
  }
}
