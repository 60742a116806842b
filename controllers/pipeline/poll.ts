import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Stalled } from '../../api/errors.ts'
import type { Pipeline } from '../../api/pipeline.ts'
import { jobOfCommit } from '../../queue/control.ts'
import { enqueue } from '../../queue/enqueue.ts'
import { type GitOptions, runGit } from '../../runtime/git.ts'
import type { Logger } from '../../runtime/log.ts'
import type { Database } from '../../runtime/sql.ts'
import { isBuilt, pushed } from './refs.ts'

export interface PollOptions {
  database: Database
  readSecret: (namespace: string, name: string) => Promise<Record<string, string> | undefined>
  /** A job was queued. */
  onChange?: () => void
  log: Logger
}

export interface Tip {
  ref: string
  commit: string
}

/** A repository with more refs that are built is a mistake in a pattern. */
const maxRefs = 1000

/**
 * The branches and tags that are built, as the repository has them now.
 *
 * @throws Stalled `NotFound` for a missing Secret, `Invalid` for too many; what `runGit` throws
 */
export async function findTips(options: PollOptions, pipeline: Pipeline, signal: AbortSignal): Promise<Tip[]> {
  const { source } = pipeline.spec
  const patterns = [
    ...source.branches.map((name) => `refs/heads/${name}`),
    // An annotated tag's commit is listed as `v1^{}`, which a name without a star would not match.
    ...source.tags.flatMap((name) => [`refs/tags/${name}`, `refs/tags/${name}^{}`]),
  ]
  const credentials = await credentialsOf(options, pipeline)
  const listed = await runGit(['ls-remote', '--', source.url, ...patterns], { credentials, signal })
  const found = [...listed.toString().matchAll(/^([0-9a-f]{40})\t(\S+)$/gm)].map(([, commit = '', ref = '']) => ({
    commit,
    ref,
  }))
  const built = peeled(found).filter(({ ref }) => isBuilt(pipeline, ref))
  if (built.length > maxRefs)
    throw new Stalled('Invalid', `${built.length} branches and tags match; the limit is ${maxRefs}`)
  return built
}

async function credentialsOf({ readSecret }: PollOptions, { metadata, spec }: Pipeline) {
  const { webhookSecretRef, credentialsSecretRef } = spec.source
  const read = async (name: string) => {
    const secret = await readSecret(metadata.namespace ?? '', name)
    if (!secret) throw new Stalled('NotFound', `there is no Secret ${name}`)
    return secret
  }
  if (webhookSecretRef) await read(webhookSecretRef.name)
  return credentialsSecretRef && (await read(credentialsSecretRef.name))
}

/** An annotated tag is listed twice; its second line, `ref^{}`, names the commit. */
function peeled(tips: Tip[]): Tip[] {
  const commits = new Map<string, string>()
  for (const { ref, commit } of tips) commits.set(ref.replace(/\^\{\}$/, ''), commit)
  return [...commits].map(([ref, commit]) => ({ ref, commit }))
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
    else fresh.push(tip)
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
  const dir = await mkdtemp(join(tmpdir(), 'shoal-poll-'))
  try {
    const git: GitOptions = { dir, credentials: await credentialsOf(options, pipeline), signal }
    const commits = [...new Set(tips.map(({ commit }) => commit))]
    await runGit(['init', '--quiet', '--bare'], git)
    // The commits alone, where the server can leave out the rest.
    const bare = ['fetch', '--quiet', '--no-tags', '--depth=1', '--filter=tree:0', '--', pipeline.spec.source.url]
    await runGit([...bare, ...tips.map(({ ref }) => ref)], git)
    const dates = await runGit(['show', '--no-patch', '--format=%H %ct', ...commits], git)
    const dateOf = new Map(
      [...dates.toString().matchAll(/^([0-9a-f]{40}) (\d+)$/gm)].map(([, id, at]) => [id, Number(at)]),
    )
    return tips.toSorted((a, b) => (dateOf.get(a.commit) ?? 0) - (dateOf.get(b.commit) ?? 0))
  } catch (error) {
    signal.throwIfAborted()
    // A ref moved meanwhile, or the server doesn't tell: they are built all the same.
    options.log.info({ err: error }, 'the order of pushes is not known')
    return tips
  } finally {
    await rm(dir, { recursive: true, force: true })
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
