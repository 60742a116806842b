import { spawn } from 'node:child_process'
import { statfs } from 'node:fs/promises'
import { setTimeout as delay } from 'node:timers/promises'
import { memoryFolders, onlyOf } from './leftovers.ts'
import { type BuildProcesses, processesOf } from './processes.ts'

/** Kibibytes on disk, and names: of a file with several, each counts its share. */
const findOptions = ['-printf', '%k %n\\n']

/**
 * What files take of their disks: those of the user, or all. A folder that can't be read, or isn't there, counts as
 * empty.
 */
export function diskUseBytes(folders: string[], uid: number | undefined, signal?: AbortSignal): Promise<number> {
  const whose = uid === undefined ? [] : onlyOf(uid)
  const child = spawn('find', ['-P', ...folders, '-xdev', ...whose, ...findOptions], {
    stdio: ['ignore', 'pipe', 'ignore'],
    env: { PATH: process.env.PATH, LC_ALL: 'C' },
    ...(signal && { signal }),
  })
  return new Promise((resolve, reject) => {
    let kibibytes = 0
    let rest = ''
    child.stdout.setEncoding('latin1').on('data', (chunk: string) => {
      const lines = (rest + chunk).split('\n')
      rest = lines.pop() ?? ''
      for (const line of lines) {
        const at = line.indexOf(' ')
        kibibytes += Number(line.slice(0, at)) / Number(line.slice(at + 1))
      }
    })
    child.on('error', reject)
    child.on('close', () => resolve(1024 * kibibytes))
  })
}

/** Zombies count, as the kernel counts them. Memory that processes share counts for each of them. */
function processUse(build: BuildProcesses): { threads: number; memoryBytes: number } {
  let [threads, kibibytes] = [0, 0]
  for (const status of processesOf(build).values()) {
    threads += Number(/^Threads:\s+(\d+)$/m.exec(status)?.[1] ?? 0)
    for (const [, count] of status.matchAll(/^Rss(?:Anon|Shmem):\s+(\d+) kB$/gm)) kibibytes += Number(count)
  }
  return { threads, memoryBytes: 1024 * kibibytes }
}

/** A limit that a build met; `floor`: of the machine, not of the build. */
export type Limit = 'pids' | 'memory' | 'disk' | 'floor'

export interface Watched {
  build: BuildProcesses
  /** Where it writes to disk; they exist. */
  folders: string[]
  maxDiskBytes: number
  /** Where no cgroup counts them. */
  maxProcesses?: number | undefined
  maxMemoryBytes?: number | undefined
}

/** A look at many files or processes takes long: it may take this share of the time. */
interface Pace {
  leastMs: number
  share: number
}
/** Whoever forks without end makes each look long: it must not be the last for a while. */
const processesPace: Pace = { leastMs: 250, share: 0.5 }
const diskPace: Pace = { leastMs: 1000, share: 0.1 }

/** Looks again and again, until a limit is met: says which. Throws the signal's AbortError. */
export function limitMet(watched: Watched, signal: AbortSignal): Promise<Limit> {
  const looks = [() => floorMet(watched), () => diskLimitMet(watched, signal)]
  return Promise.race([
    ...looks.map((look) => until(look, diskPace, signal)),
    until(() => processLimitMet(watched, signal), processesPace, signal),
  ])
}

async function until(
  look: () => Promise<Limit | undefined>,
  { leastMs, share }: Pace,
  signal: AbortSignal,
): Promise<Limit> {
  for (let pauseMs = leastMs; ; ) {
    await delay(pauseMs, undefined, { signal })
    const began = performance.now()
    const met = await look()
    if (met) return met
    pauseMs = Math.max(leastMs, (performance.now() - began) / share)
  }
}

async function processLimitMet(watched: Watched, signal: AbortSignal): Promise<Limit | undefined> {
  const { build, maxProcesses = Infinity, maxMemoryBytes = Infinity } = watched
  const [met] = build.cgroup?.reached() ?? []
  if (met || (maxProcesses === Infinity && maxMemoryBytes === Infinity)) return met
  const { threads, memoryBytes } = processUse(build)
  if (threads > maxProcesses) return 'pids'
  const filesBytes = build.uid === undefined ? 0 : await diskUseBytes(memoryFolders, build.uid, signal)
  return memoryBytes + filesBytes > maxMemoryBytes ? 'memory' : undefined
}

/** A last look, at a command that has ended. */
export const limitWasMet = async (watched: Watched, signal: AbortSignal): Promise<Limit | undefined> =>
  (await processLimitMet(watched, signal)) ?? (await diskLimitMet(watched, signal))

async function diskLimitMet(
  { build, folders, maxDiskBytes }: Watched,
  signal: AbortSignal,
): Promise<'disk' | undefined> {
  return (await diskUseBytes(folders, build.uid, signal)) > maxDiskBytes ? 'disk' : undefined
}

/** Whether a disk is nearly full: that sees what find doesn't, as files without a name that are still open. */
async function floorMet({ folders }: Watched): Promise<'floor' | undefined> {
  for (const folder of folders) {
    const { bavail, bsize, blocks, files, ffree } = await statfs(folder)
    if (bavail < Math.min(2 ** 29 / bsize, blocks / 20) || ffree < Math.min(10_000, files / 20)) return 'floor'
  }
  return undefined
}
