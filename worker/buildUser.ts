import { execFile } from 'node:child_process'
import { readdirSync, statSync } from 'node:fs'
import { setTimeout as delay } from 'node:timers/promises'
import { promisify } from 'node:util'

const run = promisify(execFile)
const firstUid = 20_000
const uids = 40_000

/** Whom a build runs as: a uid of its own where this process is root, so that all it starts can be found and ended. */
export interface BuildUser {
  /** Undefined: as the worker itself. */
  uid: number | undefined
}

/** A uid that no process has; none where this process isn't root or such a user could not reach the workspace. */
export async function chooseBuildUser(workspace: string): Promise<BuildUser> {
  if (process.getuid?.() !== 0) return { uid: undefined }
  let uid = firstUid + (process.pid % uids)
  while (processesOf(uid).length > 0) uid = firstUid + ((uid - firstUid + 1) % uids)
  try {
    await run('ls', [workspace], { uid, gid: uid })
    return { uid }
  } catch {
    return { uid: undefined }
  }
}

/** Gives a folder and all in it to the build's user. */
export async function giveTo({ uid }: BuildUser, folder: string): Promise<void> {
  if (uid !== undefined) await run('chown', ['-R', '-h', `${uid}:${uid}`, folder])
}

/** Ends everything the build started: all processes of its uid, whatever session they are in, or its process group. */
export async function endProcesses({ uid }: BuildUser, groupId: number | undefined): Promise<void> {
  if (groupId !== undefined) kill(-groupId)
  if (uid === undefined) return
  // One may fork while another is killed: until none is left.
  for (let round = 0; round < 100; round++) {
    const left = processesOf(uid)
    if (left.length === 0) return
    for (const pid of left) kill(pid)
    await delay(10)
  }
}

function processesOf(uid: number): number[] {
  return readdirSync('/proc')
    .filter((name) => /^\d+$/.test(name))
    .map(Number)
    .filter((pid) => {
      try {
        return statSync(`/proc/${pid}`).uid === uid
      } catch {
        return false
      }
    })
}

function kill(pid: number): void {
  try {
    process.kill(pid, 'SIGKILL')
  } catch {
    // It is gone.
  }
}
