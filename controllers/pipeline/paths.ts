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
  if (pipeline.spec.source.paths.length === 0) return undefined
  const { namespace = '', name } = pipeline.metadata
  const before = await lastOfRef(options.database, { namespace, pipeline: name, ref: tip.ref })
  if (before === undefined || before === tip.commit) return undefined
  try {
    const inTime = AbortSignal.any([signal, AbortSignal.timeout(lookMs)])
    const changed = await isChanged(options, pipeline, { before, after: tip.commit, signal: inTime })
    return changed ? undefined : before
  } catch (error) {
    signal.throwIfAborted()
    options.log.info({ err: error, pipeline: name, namespace, ...tip }, 'what a push changed is not known')
    return undefined
  }
}

/** Whether anything under the paths differs between two commits. Throws what `runGit` throws. */
async function isChanged(
  options: RepositoryOptions,
  pipeline: Pipeline,
  { before, after, signal }: { before: string; after: string; signal: AbortSignal },
): Promise<boolean> {
  const { paths, url } = pipeline.spec.source
  const key = JSON.stringify([before, after, paths])
  const known = found.get(key)
  if (known !== undefined) return known
  const names = await withRepository(options, { pipeline, signal }, async (git) => {
    // The names alone, where the server can leave out the rest.
    const bare = ['fetch', '--quiet', '--no-tags', '--depth=1', '--filter=blob:none', '--', url]
    await runGit([...bare, before, after], git)
    const under = paths.map((path) => `:(glob)${path}`)
    return await runGit(['diff-tree', '-r', '--no-renames', '--name-only', before, after, '--', ...under], git)
  })
  const [oldest] = found.keys()
  if (oldest !== undefined && found.size >= maxFound) found.delete(oldest)
  found.set(key, names.length > 0)
  return names.length > 0
}
