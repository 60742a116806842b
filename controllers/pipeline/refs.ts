import { matchesGlob } from 'node:path'
import type { Pipeline } from '../../api/pipeline.ts'
import type { NewJob } from '../../queue/enqueue.ts'

/** Whether a push to this ref is built: a branch by name or pattern (`release/*`), a tag by pattern. */
export function isBuilt({ spec }: Pipeline, ref: string): boolean {
  const branch = after(ref, 'refs/heads/')
  const tag = after(ref, 'refs/tags/')
  if (branch !== undefined)
    return spec.source.branches.some((pattern) => pattern === branch || matchesGlob(branch, pattern))
  return tag !== undefined && spec.source.tags.some((pattern) => matchesGlob(tag, pattern))
}

export const isTag = (ref: string) => ref.startsWith('refs/tags/')

const after = (ref: string, prefix: string) => (ref.startsWith(prefix) ? ref.slice(prefix.length) : undefined)

/** The job of a push to a ref that is built. */
export function pushed({ metadata, spec }: Pipeline, push: { commit: string; ref: string }): NewJob {
  const { max, onPush } = spec.concurrency
  return {
    namespace: metadata.namespace ?? '',
    pipeline: metadata.name,
    ...push,
    maxJobs: max,
    cancelOlder: onPush === 'CancelOlder',
  }
}
