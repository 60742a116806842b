import type { Pipeline } from '../../api/pipeline.ts'
import { jobOfCommit } from '../../queue/control.ts'
import { enqueue } from '../../queue/enqueue.ts'
import { runGit } from '../../runtime/git.ts'
import type { Logger } from '../../runtime/log.ts'
import type { Database } from '../../runtime/sql.ts'
import { untouchedSince } from './paths.ts'
import { pushed } from './refs.ts'
import { findTips, type RepositoryOptions, type Tip, withRepository } from './repository.ts'

export interface PollOptions extends RepositoryOptions {
  database: Database
  /** A job was queued. */
  onChange?: () => void
  log: Logger
}

interface QueueTips {
  tips: Tip[]
  ignoredTags?: string[] | undefined
  signal: AbortSignal
}

/** Queues what is new of these, the oldest commit first; the name of the last job. */
export async function queueTips(
  options: PollOptions,
  pipeline: Pipeline,
  { tips, ignoredTags = [], signal }: QueueTips,
): Promise<string | undefined> {
  const { database, onChange } = options
  const { namespace = '', name } = pipeline.metadata
  const fresh: Tip[] = []
  let last: string | undefined
  for (const tip of tips) {
    if (ignoredTags.includes(tip.ref)) continue
    const known = await jobOfCommit(database, { namespace, pipeline: name, commit: tip.commit })
    if (known) last = known.name
    else if ((await untouchedSince(options, pipeline, { tip, signal })) === undefined) fresh.push(tip)
  }
  for (const tip of await inPushOrder(options, pipeline, { tips: fresh, signal })) {
    const { job, created } = await enqueue(database, pushed(pipeline, tip))
    if (created) onChange?.()
    last = job.name
  }
  return last
}

/** What several pushes left while nobody listened is told apart by when it was committed. */
async function inPushOrder(
  options: PollOptions,
  pipeline: Pipeline,
  { tips, signal }: { tips: Tip[]; signal: AbortSignal },
): Promise<Tip[]> {
  if (tips.length < 2) return tips
  const commits = [...new Set(tips.map(({ commit }) => commit))]
  try {
    const dates = await withRepository(options, { pipeline, signal }, async (git) => {
      // The commits alone, where the server can leave out the rest.
      const bare = ['fetch', '--quiet', '--no-tags', '--depth=1', '--filter=tree:0', '--', pipeline.spec.source.url]
      await runGit([...bare, ...tips.map(({ ref }) => ref)], git)
      return await runGit(['show', '--no-patch', '--format=%H %ct', ...commits], git)
    })
    const dateOf = new Map(
      [...dates.toString().matchAll(/^([0-9a-f]{40}) (\d+)$/gm)].map(([, id, at]) => [id, Number(at)]),
    )
    return tips.toSorted((a, b) => (dateOf.get(a.commit) ?? 0) - (dateOf.get(b.commit) ?? 0))
  } catch (error) {
    signal.throwIfAborted()
    // A ref moved meanwhile, or the server doesn't tell: they are built all the same.
    options.log.info({ err: error }, 'the order of pushes is not known')
    return tips
  }
}

const catchUpMs = 5000

/**
 * For webhooks: what was pushed while no hub listened is queued before the first push that this process hears of. Once
 * for each pipeline, 5 s at most; what goes wrong is left to the poll.
 */
export function catchingUp(options: PollOptions): (pipeline: Pipeline) => Promise<void> {
  const begun = new Map<string, Promise<void>>()
  const catchUp = async (pipeline: Pipeline) => {
    const signal = AbortSignal.timeout(catchUpMs)
    const { polledAt, ignoredTags } = pipeline.status ?? {}
    // Before its first poll, tags that were always there can't be told from new ones.
    if (polledAt === undefined) return
    const tips = await findTips(options, pipeline, signal)
    await queueTips(options, pipeline, { tips, ignoredTags, signal })
  }
  return (pipeline) => {
    const uid = pipeline.metadata.uid ?? ''
    const running =
      begun.get(uid) ??
      catchUp(pipeline).catch((error: unknown) => options.log.info({ err: error }, 'looking for missed pushes failed'))
    begun.set(uid, running)
    return running
  }
}
