import { execFile } from 'node:child_process'
import { existsSync } from 'node:fs'
import { promisify } from 'node:util'
import { Stalled } from '../api/errors.ts'
import type { Logger } from '../runtime/log.ts'
import { lockUid } from './buildUser.ts'
import { Cgroup, type CgroupParent, usableCgroups } from './cgroup.ts'
import { sharedFolders } from './leftovers.ts'
import { formatBytes, type Limits, prlimitOptions, type ResourceLimits } from './limits.ts'
import { killBuild } from './processes.ts'

export interface IsolationOptions {
  /** Of its own; without one builds run as ourselves. */
  uid: number | undefined
  limits: Limits
  log: Logger
}

type Tool = 'setpriv' | 'prlimit' | 'find'

const run = promisify(execFile)
const prefix = 'shoal-build-'

/**
 * What holds a worker's builds within limits on this machine, as tried at the start: cgroups where we may make them,
 * else resource limits and a look at what they use.
 */
export class Isolation {
  readonly uid: number | undefined
  readonly limits: Limits
  /** In short, for people. */
  readonly text: string
  /** What starts the shell that starts a build. */
  readonly starter: string[]
  /** Whether only a look at all its processes tells what a build uses. */
  readonly watches: { pids: boolean; memory: boolean }
  /** Folders that builds may write to beside their own. */
  readonly sharedFolders: string[]
  readonly #cgroups: CgroupParent[]

  private constructor({ uid, limits }: IsolationOptions, cgroups: CgroupParent[], tools: Set<Tool>) {
    const groupOf = (name: 'pids' | 'memory') => cgroups.find(({ controllers }) => controllers.includes(name))
    const [pids, memory] = [groupOf('pids'), groupOf('memory')]
    const resources: ResourceLimits = {
      // The hard stop between two looks. It ends many of those that fork without end, and the next look must still find
      // more than the limit. Without a uid of its own it would count all that this user runs.
      ...(!pids && uid !== undefined && { nproc: 2 * limits.maxProcesses }),
      fsize: limits.maxDiskBytes,
      core: 0,
    }
    this.uid = uid
    this.limits = limits
    this.#cgroups = cgroups
    this.sharedFolders = uid === undefined ? [] : sharedFolders.filter((folder) => existsSync(folder))
    this.watches = { pids: !pids && uid !== undefined, memory: !memory }
    this.starter = [
      // Its worker goes first.
      ...['nice', '-n', '10'],
      ...(tools.has('setpriv') ? ['setpriv', '--no-new-privs', '--'] : []),
      ...(tools.has('prlimit') ? ['prlimit', ...prlimitOptions(resources), '--'] : []),
    ]
    const amounts = {
      pids: `pids ${limits.maxProcesses}`,
      memory: `memory ${formatBytes(limits.maxMemoryBytes)}`,
      disk: `disk ${formatBytes(limits.maxDiskBytes)}`,
    }
    const holders = Object.groupBy(['pids', 'memory', 'disk'] as const, (what) => {
      const cgroup = what === 'pids' ? pids : what === 'memory' ? memory : undefined
      if (cgroup) return `cgroup v${cgroup.version}`
      return what === 'pids' && uid === undefined ? 'unlimited' : 'watched'
    })
    const rlimits = Object.keys(resources).filter((name) => name !== 'core')
    this.text = [
      uid === undefined ? 'the worker’s own user' : `uid ${uid}`,
      ...Object.entries(holders).map(([by, what = []]) => `${by}: ${what.map((it) => amounts[it]).join(', ')}`),
      tools.has('prlimit') ? `rlimits: ${rlimits.join(', ')}` : 'no rlimits',
      tools.has('setpriv') ? 'no new privileges' : 'setuid programs work',
    ].join('; ')
  }

  /** Throws Stalled `ConfigInvalid` when there is no find to look with. */
  static async open(options: IsolationOptions): Promise<Isolation> {
    const { uid, log } = options
    // Whoever builds as ourselves can leave a cgroup, and take part in its removal.
    const cgroups = uid === undefined ? [] : await usableCgroups()
    await removeAbandoned(cgroups, uid, log)
    const tools = new Set<Tool>()
    const tries: [Tool, string[]][] = [
      ['setpriv', ['--no-new-privs', '--', 'true']],
      ['prlimit', ['--core=0', '--', 'true']],
      ['find', ['/dev/null', '-printf', '']],
    ]
    for (const [tool, args] of tries) {
      const works = await run(tool, args).then(
        () => true,
        () => false,
      )
      if (works) tools.add(tool)
    }
    if (!tools.has('find')) throw new Stalled('ConfigInvalid', 'there is no find with -printf: install GNU findutils')
    // Then nobody reaps them; they count, until no process can be started.
    if (process.pid === 1) log.error('this worker is process 1: run it under an init, which reaps what builds leave')
    return new Isolation(options, cgroups, tools)
  }

  /** A cgroup for one build, with its limits. */
  async makeCgroup(): Promise<Cgroup> {
    const cgroup = Cgroup.named(this.#cgroups, `${prefix}${this.uid}`)
    // That of a build which took long to die.
    await cgroup[Symbol.asyncDispose]()
    await cgroup.make(this.limits)
    return cgroup
  }
}

/** Removes cgroups of workers that are gone, with what is in them. The uid in a name is locked by whoever lives. */
async function removeAbandoned(cgroups: CgroupParent[], own: number | undefined, log: Logger): Promise<void> {
  for (const name of await Cgroup.names(cgroups, prefix)) {
    const uid = Number(name.slice(prefix.length))
    const lock = uid === own ? undefined : await lockUid(uid)
    if (uid !== own && !lock) continue
    try {
      await using cgroup = Cgroup.named(cgroups, name)
      await killBuild({ cgroup, uid, home: '/nonexistent' })
    } catch (error) {
      log.error({ err: error }, 'the cgroup of a worker that is gone was not removed')
    } finally {
      lock?.close()
    }
  }
}
