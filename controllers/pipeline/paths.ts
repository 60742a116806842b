import type { Pipeline } from '../../api/pipeline.ts'
import { lastOfRef } from '../../queue/control.ts'
import { runGit } from '../../runtime/git.ts'
import type { Logger } from '../../runtime/log.ts'
import type { Database } from '../../runtime/sql.ts'
import { type RepositoryOptions, type Tip, withRepository } from './repository.ts'

const lookMs = 4000
/** What was found of two commits stays true; it is kept, since every poll asks again. */
const found = new Map<string, boolean>()
const maxFound = 10_000

/**
 * `source.paths`: the last queued commit of this ref, when nothing under the paths changed since; undefined when the tip is
 * to be built. It is, too, where that can't be told: the first of its ref, a commit that the repository no longer has, one
 * that doesn't answer for 4 s.
 */
export async function untouchedSince(
  options: RepositoryOptions & { database: Database; log: Logger },
  pipeline: Pipeline,
  { tip, signal }: { tip: Tip; signal: AbortSignal },
): Promise<string | undefined> {
  const { paths, url } = pipeline.spec.source
  if (paths.length === 0) return undefined
  const { namespace = '', name } = pipeline.metadata
  const before = await lastOfRef(options.database, { namespace, pipeline: name, ref: tip.ref })
  if (before === undefined || before === tip.commit) return undefined
  const key = JSON.stringify([before, tip.commit, paths])
  let changed = found.get(key)
  if (changed === undefined) {
    const inTime = AbortSignal.any([signal, AbortSignal.timeout(lookMs)])
    try {
      changed = await withRepository(options, { pipeline, signal: inTime }, async (git) => {
        // The names alone, where the server can leave out the rest.
        const bare = ['fetch', '--quiet', '--no-tags', '--depth=1', '--filter=blob:none', '--', url]
        await runGit([...bare, before, tip.commit], git)
        const under = paths.map((path) => `:(glob)${path}`)
        const names = await runGit(
          ['diff-tree', '-r', '--no-renames', '--name-only', before, tip.commit, '--', ...under],
          git,
        )
        return names.length > 0
      })
    } catch (error) {
      signal.throwIfAborted()
      options.log.info({ err: error, pipeline: name, namespace, ...tip }, 'what a push changed is not known')
      return undefined
    }
    found.set(key, changed)
    for (const oldest of found.keys()) {
      if (found.size <= maxFound) break
      found.delete(oldest)
    }
  }
  return changed ? undefined : before
}
