import { execFile } from 'node:child_process'
import { chmod, chown, mkdir } from 'node:fs/promises'
import { join } from 'node:path'
import { promisify } from 'node:util'
import type { ClaimedJob } from '../api/workerApi.ts'
import { Shelf } from './shelf.ts'
import { giveTo } from './workspace.ts'

const run = promisify(execFile)

/** A pipeline's cache while one of its jobs has it. Disposing takes it back; no process of the build may be left. */
export interface LentCache extends AsyncDisposable {
  path: string
}

/**
 * Not to be given to another user: chown(2) on a second name of somebody's file would give away that file, and a program
 * that was set-uid would be so to the next user.
 */
const unwanted = [
  '!',
  '-type',
  'd',
  '(',
  '-links',
  '+1',
  '-o',
  '-perm',
  '/6000',
  '-o',
  '!',
  '-type',
  'f',
  '!',
  '-type',
  'l',
  ')',
]

/**
 * Lends a job what earlier builds of its pipeline and source left in their cache; undefined when another job has it. Its
 * folder lies in one of root's that is open to the build's group only as long as it is lent, so it doesn't matter what
 * modes a build gives to its files.
 */
export async function lendCache(shelf: Shelf, job: ClaimedJob, uid: number): Promise<LentCache | undefined> {
  const { namespace, pipeline, source } = job
  const entry = await shelf.take(Shelf.key('pipeline', namespace, pipeline, source.url), { waitMs: 0 })
  if (!entry) return undefined
  const path = join(entry.path, 'data')
  const prepare = async () => {
    await mkdir(path, { recursive: true, mode: 0o700 })
    // Links are not followed, and nobody can put new ones there: the folder above is closed.
    await run('find', ['-P', path, ...unwanted, '-delete'])
    await giveTo(path, uid)
  }
  // A cache that can't be prepared is worth nothing.
  await prepare().catch(() => entry.empty().then(prepare))
  await chown(entry.path, 0, uid)
  await chmod(entry.path, 0o710)
  return { path, [Symbol.asyncDispose]: () => entry[Symbol.asyncDispose]() }
}
