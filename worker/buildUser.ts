import { spawnSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import { mkdirSync, readFileSync } from 'node:fs'
import { createServer, type Server } from 'node:net'
import { hostname } from 'node:os'
import { dirname, join } from 'node:path'
import { Stalled } from '../api/errors.ts'
import type { Logger } from '../runtime/log.ts'
import { removeLeftovers } from './leftovers.ts'
import { lockFolder } from './lock.ts'
import { killBuild } from './processes.ts'

/** Who builds run as. */
export interface BuildUser extends AsyncDisposable {
  /** User and group; without one builds run as ourselves. */
  uid?: number
}

export interface BuildUserOptions {
  uids: { first: number; count: number }
  /** Builds must be able to reach it; others that share the folder above are given other uids. */
  folder: string
  /** Files that builds must not be able to read. */
  secrets: string[]
  log: Logger
}

/**
 * A uid that no other worker of this machine has, until it is disposed or this process ends, whatever way. What an
 * earlier worker's build left running under it is killed. There is none, and the log says so, without root's rights or
 * where that user can't reach the folder.
 *
 * @throws Stalled `ConfigInvalid` when all are taken, or when that user can read a secret
 */
export async function takeBuildUser({ uids, folder, secrets, log }: BuildUserOptions): Promise<BuildUser> {
  if (process.getuid?.() !== 0) return asOurselves(log, 'this process is not root')
  // Containers of a machine begin at different ones: the kernel counts a user's processes in all of them together.
  const begin = createHash('sha256').update(hostname()).digest().readUInt32LE()
  for (let n = 0; n < uids.count; n++) {
    const uid = uids.first + ((begin + n) % uids.count)
    if (hasName(uid)) continue
    await using locks = new AsyncDisposableStack()
    if (!(await lockBoth(uid, dirname(folder), locks))) continue
    const reason = refused('cd -- "$1"', folder, uid)
    if (reason !== undefined) return asOurselves(log, `uid ${uid} can’t enter ${folder}: ${reason}`)
    for (const secret of secrets) {
      if (refused('test -r "$1"', secret, uid) === undefined)
        throw new Stalled('ConfigInvalid', `builds can read ${secret}: let nobody but root read it (chmod 400)`)
    }
    await killBuild({ uid, home: folder })
    await removeLeftovers(uid)
    const kept = locks.move()
    return { uid, [Symbol.asyncDispose]: () => kept.disposeAsync() }
  }
  throw new Stalled('ConfigInvalid', `all ${uids.count} uids for builds from ${uids.first} on are in use`)
}

function asOurselves(log: Logger, why: string): BuildUser {
  log.error({ why }, 'builds run as this process’ own user, and can read what it can read')
  return { async [Symbol.asyncDispose]() {} }
}

/** A user of this machine is nobody whose processes we may kill. */
function hasName(uid: number): boolean {
  try {
    return readFileSync('/etc/passwd', 'utf8').includes(`:x:${uid}:`)
  } catch {
    return false
  }
}

/** On this machine, and among all that share the workspace from machines or containers of their own. */
async function lockBoth(uid: number, workspace: string, locks: AsyncDisposableStack): Promise<boolean> {
  const here = await lockUid(uid)
  if (!here) return false
  locks.defer(() => new Promise((resolve) => here.close(() => resolve())))
  const path = join(workspace, `.uid-${uid}`)
  mkdirSync(path, { recursive: true, mode: 0o700 })
  const shared = await lockFolder(path, { waitMs: 0 }).catch(() => 'no flock' as const)
  if (shared && shared !== 'no flock') locks.use(shared)
  return shared !== undefined
}

/** An abstract socket is a lock that the kernel frees with its process (unix(7)). */
export function lockUid(uid: number): Promise<Server | undefined> {
  const server = createServer((socket) => socket.destroy()).unref()
  return new Promise((resolve, reject) => {
    server.once('error', (error: NodeJS.ErrnoException) =>
      error.code === 'EADDRINUSE' ? resolve(undefined) : reject(error),
    )
    server.listen(`\0shoal-build-uid-${uid}`, () => resolve(server))
  })
}

/** Why that user's shell can't do it; undefined when it can. */
function refused(command: string, path: string, uid: number): string | undefined {
  const { error, status, stderr } = spawnSync('/bin/sh', ['-c', command, 'sh', path], {
    uid,
    gid: uid,
    cwd: '/',
    env: {},
    encoding: 'utf8',
  })
  if (error) return (error as NodeJS.ErrnoException).code ?? error.message
  return status === 0 ? undefined : stderr.trim()
}
