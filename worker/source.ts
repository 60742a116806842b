import { Stalled, Transient } from '../api/errors.ts'
import type { ClaimedJob } from '../api/workerApi.ts'
import { retry } from '../artifacts/parallel.ts'
import { runGit } from '../runtime/git.ts'

export interface FetchOptions {
  job: ClaimedJob
  /** The repository to fetch into. */
  dir: string
  /** A ref to keep the commit by; by default there is none. */
  keepAs?: string
  attempts: number
  signal: AbortSignal
}

/** What git's servers say of a commit they don't have, or don't give by its id. Others say it in other words. */
const refusal = /not our ref|unadvertised|not valid|not found/i

/**
 * Fetches the job's commit from its source: without history, where the server gives commits by their id.
 *
 * @throws Stalled `CommitNotFound`; Transient `SourceUnreachable`, `Timeout` when all attempts failed
 */
export async function fetchFromSource({ job, dir, keepAs, attempts, signal }: FetchOptions): Promise<void> {
  const { commit, ref, source } = job
  const git = (...args: string[]) => runGit(args, { dir, signal, credentials: source })
  const fetch = (what: string, ...options: string[]) => {
    const refspec = keepAs === undefined ? what : `+${what}:${keepAs}`
    return git('fetch', '--quiet', '--no-tags', '--no-recurse-submodules', ...options, '--', source.url, refspec)
  }
  let attempt = 0
  await retry(attempts, signal, async () => {
    attempt++
    try {
      return void (await fetch(commit, '--depth=1'))
    } catch (error) {
      if (!(error instanceof Transient) || error.code !== 'SourceUnreachable') throw error
      // The whole history is asked for only where it may help.
      if (!refusal.test(error.message) && attempt < attempts) throw error
      const tips = (await git('ls-remote', '--', source.url, ref)).toString()
      if (tips.trim() !== '') await fetch(ref)
    }
    if (!(await hasCommit(dir, commit, signal)))
      throw new Stalled('CommitNotFound', `the repository has no commit ${commit}, nor does ${ref} lead to it`)
  })
}

export const hasCommit = (dir: string, commit: string, signal: AbortSignal): Promise<boolean> =>
  runGit(['cat-file', '-e', `${commit}^{commit}`], { dir, signal }).then(
    () => true,
    () => false,
  )
