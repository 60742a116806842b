/**
 * controllers/pipeline/: what puts commits into the queue: webhooks, and a poll of every repository that finds what a
 * webhook missed, such as a push while the hub was down.
 */
import { isDeepStrictEqual } from 'node:util'
import { ShoalError, Stalled } from '../../api/errors.ts'
import { durationMs } from '../../api/meta.ts'
import { Pipeline } from '../../api/pipeline.ts'
import { enqueue } from '../../queue/enqueue.ts'
import { type Clock, systemClock } from '../../runtime/clock.ts'
import type { Cluster } from '../../runtime/cluster.ts'
import { type Standing, standingConditions } from '../../runtime/conditions.ts'
import { Controller, type ReconcileResult } from '../../runtime/controller.ts'
import { runGit } from '../../runtime/git.ts'
import type { Logger } from '../../runtime/log.ts'
import type { Metrics } from '../../runtime/metrics.ts'
import type { Reflector } from '../../runtime/reflector.ts'
import type { Database } from '../../runtime/sql.ts'
import { isBuilt, pushed } from './refs.ts'

export interface PipelineControllerOptions {
  cluster: Cluster
  database: Database
  pipelines: Reflector<Pipeline>
  readSecret: (namespace: string, name: string) => Promise<Record<string, string> | undefined>
  /** A job was queued. */
  onChange?: () => void
  log: Logger
  metrics: Metrics
  clock?: Clock
  random?: () => number
}

type Status = NonNullable<Pipeline['status']>

const fieldManager = 'shoal-pipeline'
const tagPrefix = 'refs/tags/'
const gitTimeoutMs = 30_000
/** A repository with more refs that are built is a mistake in a pattern. */
const maxRefs = 1000

interface Tip {
  ref: string
  commit: string
}

/** Reconciles Pipelines every pollInterval. Runs on the leader. */
export function pipelineController(options: PipelineControllerOptions): Controller {
  const { cluster, database, pipelines, log, metrics, clock = systemClock, random = Math.random } = options
  const controller = new Controller({ name: 'pipeline', reconcile, log, metrics, clock })
  pipelines.onChange((key, object, previous) => {
    if (object && object.metadata.generation !== previous?.metadata.generation) controller.enqueue(key)
  })
  return controller

  async function reconcile(key: string, signal: AbortSignal): Promise<ReconcileResult> {
    const pipeline = pipelines.get(key)
    if (!pipeline || pipeline.metadata.deletionTimestamp) return
    let polled: Tip[] = []
    let standing: Standing
    let { lastBuildJob, polledAt, ignoredTags } = pipeline.status ?? {}
    try {
      polled = await tips(pipeline, AbortSignal.any([signal, AbortSignal.timeout(gitTimeoutMs)]))
      // Tags that were here before the pipeline are not built.
      if (polledAt === undefined) ignoredTags = polled.map(({ ref }) => ref).filter((ref) => ref.startsWith(tagPrefix))
      polledAt ??= new Date(clock.now()).toISOString()
      const ignored = new Set(ignoredTags)
      const queued = await queueNew(
        pipeline,
        polled.filter(({ ref }) => !ignored.has(ref)),
      )
      lastBuildJob = queued ?? lastBuildJob
      standing = { is: 'Ready', reason: 'Polled', message: `${polled.length} branches and tags are followed` }
    } catch (error) {
      if (signal.aborted || !(error instanceof ShoalError)) throw error
      const is = error instanceof Stalled ? 'Stalled' : 'Reconciling'
      standing = { is, reason: error.code, message: error.message }
      log.info({ key, code: error.code, reason: error.message }, 'repository not polled')
    }
    const lastCommit = polled[0]?.commit ?? pipeline.status?.lastCommit
    await report(pipeline, standing, { lastCommit, lastBuildJob, polledAt, ignoredTags })
    return { afterMs: durationMs(pipeline.spec.source.pollInterval) * (0.9 + random() / 5) }
  }

  /** The commits that are built, branches as the pipeline lists them. */
  async function tips(pipeline: Pipeline, signal: AbortSignal): Promise<Tip[]> {
    const { source } = pipeline.spec
    const namespace = pipeline.metadata.namespace ?? ''
    for (const ref of [source.webhookSecretRef, source.credentialsSecretRef]) {
      if (ref && !(await options.readSecret(namespace, ref.name)))
        throw new Stalled('NotFound', `there is no Secret ${ref.name}`)
    }
    const credentials =
      source.credentialsSecretRef && (await options.readSecret(namespace, source.credentialsSecretRef.name))
    const patterns = [
      ...source.branches.map((name) => `refs/heads/${name}`),
      // An annotated tag's commit is listed as `v1^{}`, which a name without a star would not match.
      ...source.tags.flatMap((name) => [`${tagPrefix}${name}`, `${tagPrefix}${name}^{}`]),
    ]
    const listed = await runGit(['ls-remote', '--', source.url, ...patterns], {
      ...(credentials && { credentials }),
      signal,
    })
    const found = [...listed.toString().matchAll(/^([0-9a-f]{40})\t(\S+)$/gm)].map(([, commit = '', ref = '']) => ({
      commit,
      ref,
    }))
    const built = peeled(found).filter(({ ref }) => isBuilt(pipeline, ref))
    if (built.length > maxRefs)
      throw new Stalled('Invalid', `${built.length} branches and tags match; the limit is ${maxRefs}`)
    return built
  }

  /** Queues what is new; the name of the last job. */
  async function queueNew(pipeline: Pipeline, polled: Tip[]): Promise<string | undefined> {
    let last: string | undefined
    for (const tip of polled) {
      const { job, created } = await enqueue(database, pushed(pipeline, tip))
      if (created) options.onChange?.()
      last = job.name
    }
    return last
  }

  async function report(
    pipeline: Pipeline,
    standing: Standing,
    seen: Pick<Status, 'lastCommit' | 'lastBuildJob' | 'polledAt' | 'ignoredTags'>,
  ): Promise<void> {
    const { name, namespace, generation } = pipeline.metadata
    const before = pipeline.status
    const status: Status = {
      ...(generation !== undefined && { observedGeneration: generation }),
      ...(seen.lastCommit !== undefined && { lastCommit: seen.lastCommit }),
      ...(seen.lastBuildJob !== undefined && { lastBuildJob: seen.lastBuildJob }),
      ...(seen.polledAt !== undefined && { polledAt: seen.polledAt }),
      ...(seen.ignoredTags !== undefined && { ignoredTags: seen.ignoredTags }),
      conditions: standingConditions(before?.conditions ?? [], standing, generation, clock.now()),
    }
    if (isDeepStrictEqual(before, status)) return
    await cluster.apply(Pipeline, withStatus(name, namespace, status), { fieldManager, subresource: 'status' })
  }
}

const withStatus = (name: string, namespace: string | undefined, status: Pipeline['status']) => ({
  metadata: { name, namespace },
  status,
})

/** An annotated tag is listed twice; its second line, `ref^{}`, names the commit. */
function peeled(tips: Tip[]): Tip[] {
  const commits = new Map<string, string>()
  for (const { ref, commit } of tips) commits.set(ref.replace(/\^\{\}$/, ''), commit)
  return [...commits].map(([ref, commit]) => ({ ref, commit }))
}
