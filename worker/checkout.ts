import { rm } from 'node:fs/promises'
import { join } from 'node:path'
import { ShoalError, Stalled, Transient } from '../api/errors.ts'
import type { ClaimedJob } from '../api/workerApi.ts'
import { retry } from '../artifacts/parallel.ts'
import { runGit } from '../runtime/git.ts'

const attempts = 3
const timeoutMs = 15 * 60_000
/** What git's servers say of a commit they don't have, or don't give by its id. Others say it in other words. */
const refusal = /not our ref|unadvertised|not valid|not found/i

/**
 * Checks out exactly the job's commit, without history, in the empty folder `dir`. Nothing of the source's address or
 * credentials is left in it.
 *
 * @throws Stalled `CommitNotFound`; Transient `SourceUnreachable`, `Timeout` when three attempts failed
 */
export async function checkOut(job: ClaimedJob, dir: string, signal: AbortSignal): Promise<void> {
  const { commit, ref, source } = job
  const inTime = AbortSignal.any([signal, AbortSignal.timeout(timeoutMs)])
  const git = async (...args: string[]) => {
    try {
      return (await runGit(args, { dir, signal: inTime, credentials: source })).toString()
    } catch (error) {
      signal.throwIfAborted()
      throw error
    }
  }
  const has = () =>
    git('cat-file', '-e', `${commit}^{commit}`).then(
      () => true,
      () => false,
    )
  const fetch = (what: string, ...options: string[]) =>
    git('fetch', '--quiet', '--no-tags', '--no-recurse-submodules', ...options, '--', source.url, what)

  await git('init', '--quiet')
  let attempt = 0
  await retry(attempts, signal, async () => {
    attempt++
    try {
      await fetch(commit, '--depth=1')
    } catch (error) {
      if (!(error instanceof Transient) || error.code !== 'SourceUnreachable') throw error
      // The whole history is asked for only where it may help.
      if (!refusal.test(error.message) && attempt < attempts) throw error
      const tips = await git('ls-remote', '--', source.url, ref)
      if (tips.trim() !== '') await fetch(ref)
    }
    if (!(await has()))
      throw new Stalled('CommitNotFound', `the repository has no commit ${commit}, nor does ${ref} lead to it`)
  })
  await rm(join(dir, '.git/FETCH_HEAD'), { force: true })
  await git('-c', 'advice.detachedHead=false', 'checkout', '--quiet', '--detach', commit)
  if ((await git('rev-parse', 'HEAD')).trim() !== commit)
    throw new ShoalError('Internal', 'git checked out another commit')
}
