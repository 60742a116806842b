import { readFileSync } from 'node:fs'
import { mkdir, readdir, readFile, rmdir, writeFile } from 'node:fs/promises'
import { basename, dirname, join, relative } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import type { Limits } from './limits.ts'

type Controller = 'pids' | 'memory'
const wanted: Controller[] = ['pids', 'memory']

/** A cgroup of ours, below which we make others. */
export interface CgroupParent {
  version: 1 | 2
  path: string
  controllers: Controller[]
}

/** Where a worker moves itself: in v2 a cgroup with processes has no controllers for those below it. */
const ownLeaf = 'shoal-worker'

/**
 * This process' own cgroups, from the texts of /proc/self/mountinfo and /proc/self/cgroup (cgroups(7)): one folder per
 * v1 hierarchy of a controller we use, and that of v2, whose controllers only the folder itself knows.
 */
export function ownCgroups(mounts: string, own: string): CgroupParent[] {
  const paths = own
    .split('\n')
    .map((line) => /^\d+:([^:]*):(.*)$/.exec(line))
    .filter((found) => found !== null)
    .map(([, controllers = '', path = '']) => ({ controllers: controllers.split(','), path }))
  return mounts.split('\n').flatMap((line) => {
    const [, root = '', mountPoint = '', type, options = ''] =
      /^\S+ \S+ \S+ (\S+) (\S+) .* - (cgroup2?) \S+ (\S+)$/.exec(line) ?? []
    if (type === undefined) return []
    const version = type === 'cgroup2' ? 2 : 1
    const controllers = wanted.filter((name) => version === 1 && options.split(',').includes(name))
    if (version === 1 && controllers.length === 0) return []
    const path = paths.find((it) => it.controllers.includes(controllers[0] ?? ''))?.path
    if (path === undefined) return []
    const below = relative(root, path)
    return [below, path.slice(1)].some((it) => it.startsWith('..'))
      ? []
      : [{ version, path: join(mountPoint, below), controllers }]
  })
}

/** Those of our own cgroups below which others with limits can be made. Each controller is in one of them at most. */
export async function usableCgroups(
  mounts = readFileSync('/proc/self/mountinfo', 'utf8'),
  own = readFileSync('/proc/self/cgroup', 'utf8'),
): Promise<CgroupParent[]> {
  const usable: CgroupParent[] = []
  for (const parent of ownCgroups(mounts, own)) {
    try {
      const { path, controllers } = parent.version === 2 ? await delegate(parent.path) : parent
      const probe = join(path, `shoal-probe-${process.pid}`)
      await mkdir(probe)
      await rmdir(probe)
      if (controllers.length > 0) usable.push({ version: parent.version, path, controllers })
    } catch {
      // Mounted read-only, not ours, or full of other processes: not usable.
    }
  }
  return usable
}

/** Turns the controllers on for cgroups below; this process moves out of the way where it must. */
async function delegate(own: string): Promise<Omit<CgroupParent, 'version'>> {
  const path = basename(own) === ownLeaf ? dirname(own) : own
  const there = (await readFile(join(path, 'cgroup.controllers'), 'utf8')).trim().split(' ')
  const controllers = wanted.filter((name) => there.includes(name))
  const on = controllers.map((name) => `+${name}`).join(' ')
  const turnOn = () => writeFile(join(path, 'cgroup.subtree_control'), on)
  if (controllers.length > 0) {
    await turnOn().catch(async () => {
      await mkdir(join(path, ownLeaf), { recursive: true })
      await writeFile(join(path, ownLeaf, 'cgroup.procs'), String(process.pid))
      await turnOn()
    })
  }
  return { path, controllers }
}

const patienceMs = 5000

/** The cgroups of one build: one folder per parent, all of the same name. */
export class Cgroup implements AsyncDisposable {
  readonly #folders: CgroupParent[]

  private constructor(folders: CgroupParent[]) {
    this.#folders = folders
  }

  /** Names of cgroups below the parents that begin so. */
  static async names(parents: CgroupParent[], prefix: string): Promise<string[]> {
    const all = await Promise.all(parents.map(({ path }) => readdir(path)))
    return [...new Set(all.flat().filter((name) => name.startsWith(prefix)))]
  }

  /** The cgroups of that name, made by whomever; some or all of them may not be there. */
  static named(parents: CgroupParent[], name: string): Cgroup {
    return new Cgroup(parents.map((parent) => ({ ...parent, path: join(parent.path, name) })))
  }

  /** Makes them, with their limits, for a build to `join`. */
  async make(limits: Limits): Promise<void> {
    for (const { version, path, controllers } of this.#folders) {
      const set = (file: string, value: number) => writeFile(join(path, file), String(value))
      const setIfThere = (file: string, value: number) => set(file, value).catch(() => undefined)
      await mkdir(path)
      if (controllers.includes('pids')) await set('pids.max', limits.maxProcesses)
      if (!controllers.includes('memory')) continue
      if (version === 1) {
        await set('memory.limit_in_bytes', limits.maxMemoryBytes)
        await setIfThere('memory.memsw.limit_in_bytes', limits.maxMemoryBytes)
      } else {
        await set('memory.max', limits.maxMemoryBytes)
        await setIfThere('memory.swap.max', 0)
        // Half a build is no use to anybody.
        await setIfThere('memory.oom.group', 1)
      }
    }
  }

  async join(pid: number): Promise<void> {
    for (const { path } of this.#folders) await writeFile(join(path, 'cgroup.procs'), String(pid))
  }

  /** The processes in them, as our own /proc counts them. */
  pids(): number[] {
    const lines = this.#folders.flatMap(({ path }) => read(join(path, 'cgroup.procs')).split('\n'))
    return [...new Set(lines.map(Number))].filter((pid) => pid > 0)
  }

  /** Lets nothing in it fork any more, and where the kernel can (v2, Linux 5.14), kills all at once. */
  async stop(): Promise<void> {
    for (const { version, path, controllers } of this.#folders) {
      if (controllers.includes('pids')) await writeFile(join(path, 'pids.max'), '0').catch(() => undefined)
      if (version === 2) await writeFile(join(path, 'cgroup.kill'), '1').catch(() => undefined)
    }
  }

  /** Which limits the kernel has enforced so far. */
  reached(): Controller[] {
    const count = (controller: Controller, file: string, event: string) =>
      this.#folders
        .filter(({ controllers }) => controllers.includes(controller))
        .some(({ path }) => Number(new RegExp(`^${event} (\\d+)`, 'm').exec(read(join(path, file)))?.[1] ?? 0) > 0)
    const killed = count('memory', 'memory.events', 'oom_kill') || count('memory', 'memory.oom_control', 'oom_kill')
    return [...(count('pids', 'pids.events', 'max') ? (['pids'] as const) : []), ...(killed ? ['memory' as const] : [])]
  }

  /** Removes them, once their processes are gone; throws when they don't go. */
  async [Symbol.asyncDispose](): Promise<void> {
    const began = performance.now()
    for (const { path } of this.#folders) {
      for (;;) {
        const error = await rmdir(path).then(
          () => undefined,
          (reason: NodeJS.ErrnoException) => reason,
        )
        if (error === undefined || error.code === 'ENOENT') break
        // A process that was just killed is in it until it is reaped or so.
        if (error.code !== 'EBUSY' || performance.now() - began > patienceMs) throw error
        await delay(20)
      }
    }
  }
}

function read(path: string): string {
  try {
    return readFileSync(path, 'utf8')
  } catch {
    return ''
  }
}
