/**
 * controllers/pipeline/: what puts commits into the queue: webhooks, and a poll of every repository that finds what a
 * webhook missed, such as a push while the hub was down.
 */
import { isDeepStrictEqual } from 'node:util'
import { ShoalError, Stalled } from '../../api/errors.ts'
import { durationMs } from '../../api/meta.ts'
import { Pipeline } from '../../api/pipeline.ts'
import { type Clock, systemClock } from '../../runtime/clock.ts'
import type { Cluster } from '../../runtime/cluster.ts'
import { type Standing, standingConditions } from '../../runtime/conditions.ts'
import { Controller, type ReconcileResult } from '../../runtime/controller.ts'
import type { Logger } from '../../runtime/log.ts'
import type { Metrics } from '../../runtime/metrics.ts'
import type { Reflector } from '../../runtime/reflector.ts'
import type { Database } from '../../runtime/sql.ts'
import { queueTips } from './poll.ts'
import { isTag } from './refs.ts'
import { findTips, type Tip } from './repository.ts'

export interface PipelineControllerOptions {
  cluster: Cluster
  database: Database
  pipelines: Reflector<Pipeline>
  readSecret: (namespace: string, name: string) => Promise<Record<string, string> | undefined>
  /** A job was queued. */
  onChange?: () => void
  /** A repository was looked at: the commits that its branches and tags are at now. */
  onPolled?: (key: string, commits: string[]) => void
  log: Logger
  metrics: Metrics
  clock?: Clock
  random?: () => number
}

type Status = NonNullable<Pipeline['status']>

const fieldManager = 'shoal-pipeline'
const gitTimeoutMs = 30_000

/** Reconciles Pipelines every pollInterval. Runs on the leader. */
export function pipelineController(options: PipelineControllerOptions): Controller {
  const { cluster, pipelines, log, metrics, clock = systemClock, random = Math.random } = options
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
      const inTime = AbortSignal.any([signal, AbortSignal.timeout(gitTimeoutMs)])
      polled = await findTips(options, pipeline, inTime)
      options.onPolled?.(
        key,
        polled.map(({ commit }) => commit),
      )
      // Tags that were here before the pipeline are not built.
      if (polledAt === undefined) ignoredTags = polled.map(({ ref }) => ref).filter(isTag)
      polledAt ??= new Date(clock.now()).toISOString()
      const queued = await queueTips(options, pipeline, { tips: polled, ignoredTags, signal: inTime })
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
