import { rm } from 'node:fs/promises'
import { join } from 'node:path'
import type { ClaimedJob } from '../api/workerApi.ts'
import { runGit } from '../runtime/git.ts'
import type { Logger } from '../runtime/log.ts'
import { fetchByMirror, mirrorKey } from './mirror.ts'
import type { Shelf } from './shelf.ts'
import { fetchFromSource } from './source.ts'

export interface CommitOptions {
  job: ClaimedJob
  /** Empty. */
  dir: string
  /** Where mirrors are kept, if any are. */
  shelf: Shelf | undefined
  log: Logger
  signal: AbortSignal
}

const attempts = 3
const timeoutMs = 15 * 60_000

/**
 * Makes a repository of exactly the job's commit, without history, and without its files as yet. Nothing of the source's
 * address or credentials is left in it.
 *
 * @throws Stalled `CommitNotFound`; Transient `SourceUnreachable`, `Timeout` when three attempts failed; the signal's reason
 */
export async function fetchCommit({ job, dir, shelf, log, signal }: CommitOptions): Promise<void> {
  const inTime = AbortSignal.any([signal, AbortSignal.timeout(timeoutMs)])
  try {
    await runGit(['init', '--quiet'], { dir, signal: inTime })
    let why: unknown
    const isMirrored = await (shelf && fetchByMirror(shelf, { job, dir, signal: inTime }))?.catch((error: unknown) => {
      signal.throwIfAborted()
      why = error
    })
    if (!isMirrored) await fetchFromSource({ job, dir, attempts, signal: inTime })
    if (shelf && why !== undefined) {
      // The source is well, so the mirror is not: the next job makes it anew.
      log.info({ err: why }, 'a mirror is dropped')
      await shelf.drop(mirrorKey(job))
    }
  } catch (error) {
    signal.throwIfAborted()
    throw error
  }
  await rm(join(dir, '.git/FETCH_HEAD'), { force: true })
}
