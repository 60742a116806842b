import { spawnSync } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { createServer, type Server } from 'node:net'
import { Stalled } from '../api/errors.ts'
import type { Logger } from '../runtime/log.ts'
import { killBuild } from './processes.ts'

/** Who builds run as. */
export interface BuildUser extends AsyncDisposable {
  /** User and group; without one builds run as ourselves. */
  uid?: number
}

export interface BuildUserOptions {
  uids: { first: number; count: number }
  /** Builds must be able to reach it. */
  folder: string
  log: Logger
}

/**
 * A uid that no other worker of this machine has, until it is disposed or this process ends, whatever way. What an
 * earlier worker's build left running under it is killed. There is none, and the log says so, without root's rights or
 * where that user can't reach the folder.
 */
export async function takeBuildUser({ uids, folder, log }: BuildUserOptions): Promise<BuildUser> {
  if (process.getuid?.() !== 0) return asOurselves(log, 'this process is not root')
  for (let uid = uids.first; uid < uids.first + uids.count; uid++) {
    const lock = hasName(uid) ? undefined : await lockUid(uid)
    if (!lock) continue
    const reason = cannotReach(folder, uid)
    if (reason !== undefined) {
      lock.close()
      return asOurselves(log, `uid ${uid} can’t enter ${folder}: ${reason}`)
    }
    await killBuild({ uid, home: folder })
    return {
      uid,
      async [Symbol.asyncDispose]() {
        await new Promise((resolve) => lock.close(resolve))
      },
    }
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

/** An abstract socket is a lock that the kernel frees with its process (unix(7)). */
function lockUid(uid: number): Promise<Server | undefined> {
  const server = createServer((socket) => socket.destroy()).unref()
  return new Promise((resolve, reject) => {
    server.once('error', (error: NodeJS.ErrnoException) =>
      error.code === 'EADDRINUSE' ? resolve(undefined) : reject(error),
    )
    server.listen(`\0shoal-build-uid-${uid}`, () => resolve(server))
  })
}

function cannotReach(folder: string, uid: number): string | undefined {
  const { error, status, stderr } = spawnSync('/bin/sh', ['-c', 'cd -- "$1"', 'sh', folder], {
    uid,
    gid: uid,
    cwd: '/',
    env: {},
    encoding: 'utf8',
  })
  if (error) return (error as NodeJS.ErrnoException).code ?? error.message
  return status === 0 ? undefined : stderr.trim()
}
