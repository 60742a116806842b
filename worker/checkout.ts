import { mkdir } from 'node:fs/promises'
import { ShoalError, Stalled } from '../api/errors.ts'
import type { ClaimedJob } from '../api/workerApi.ts'
import type { Clock } from '../runtime/clock.ts'
import { runGit } from '../runtime/git.ts'

const attempts = 3

/** Brings exactly the job's commit into the new folder. Throws `CommitNotFound`, `SourceUnreachable`. */
export async function checkout(
  job: ClaimedJob,
  into: { dir: string; signal: AbortSignal; clock: Clock },
): Promise<void> {
  const { dir, signal, clock } = into
  await mkdir(dir, { recursive: true })
  await runGit(['init', '--quiet', dir], { signal })
  for (let attempt = 1; ; attempt++) {
    try {
      await fetchCommit(job, dir, signal)
      break
    } catch (error) {
      signal.throwIfAborted()
      const again = error instanceof ShoalError && error.code === 'SourceUnreachable' && attempt < attempts
      if (!again) throw error
      await clock.sleep(500 * 2 ** attempt, signal)
    }
  }
  await runGit(['-c', 'advice.detachedHead=false', 'checkout', '--quiet', '--force', job.commit], { dir, signal })
}

/** By its id; where the server doesn't give single commits, by the branch or tag that had it. */
async function fetchCommit(job: ClaimedJob, dir: string, signal: AbortSignal): Promise<void> {
  const { source, commit, ref } = job
  const fetch = (what: string, ...more: string[]) =>
    runGit(['fetch', '--quiet', '--no-tags', '--no-recurse-submodules', ...more, '--', source.url, what], {
      dir,
      signal,
      credentials: source,
    })
  try {
    await fetch(commit, '--depth=1')
    return
  } catch (error) {
    if (!(error instanceof ShoalError) || error.code !== 'SourceUnreachable') throw error
    signal.throwIfAborted()
  }
  // Whoever lists its refs can be reached: then it is the commit that isn't there.
  const listed = await runGit(['ls-remote', '--', source.url], { signal, credentials: source })
  if (listed.toString().includes(`\t${ref}`)) await fetch(ref)
  const known = await runGit(['cat-file', '-t', commit], { dir, signal }).catch(() => undefined)
  if (known?.toString().trim() !== 'commit')
    throw new Stalled('CommitNotFound', `${source.url} has no commit ${commit}`)
}
