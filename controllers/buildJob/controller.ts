/**
 * controllers/buildJob/: the queue's rows as BuildJobs, and the HTTP routes workers call. The row comes first and is the
 * truth; a BuildJob made by hand gets its row here, and `spec.cancel` and `spec.priority` are passed on to it.
 */
import { isDeepStrictEqual } from 'node:util'
import { BuildJob } from '../../api/buildJob.ts'
import type { ErrorCode } from '../../api/errors.ts'
import type { Pipeline } from '../../api/pipeline.ts'
import { type Change, cancel, changesAfter, findJob, findJobs, positions, setPriority } from '../../queue/control.ts'
import { enqueue } from '../../queue/enqueue.ts'
import { unfinishedJobs } from '../../queue/history.ts'
import type { Job } from '../../queue/job.ts'
import { leases } from '../../queue/lease.ts'
import { type Clock, systemClock } from '../../runtime/clock.ts'
import { ApiError, type Cluster } from '../../runtime/cluster.ts'
import { standingConditions } from '../../runtime/conditions.ts'
import { Controller, type ReconcileResult } from '../../runtime/controller.ts'
import type { EventRecorder } from '../../runtime/events.ts'
import type { Logger } from '../../runtime/log.ts'
import type { Metrics } from '../../runtime/metrics.ts'
import type { Reflector } from '../../runtime/reflector.ts'
import type { Database } from '../../runtime/sql.ts'
import { deletedAfterMs } from './finishedJobs.ts'
import { buildJobStatus, isFinal } from './status.ts'

export interface BuildJobControllerOptions {
  cluster: Cluster
  database: Database
  buildJobs: Reflector<BuildJob>
  /** By `namespace/name`. */
  pipeline: (key: string) => Pipeline | undefined
  events: EventRecorder
  log: Logger
  metrics: Metrics
  clock?: Clock
  /** Between two looks at the rows. Default: 300 ms. */
  pollMs?: number
  /** What ended before gets no object any more: Unix milliseconds. Default: none. */
  horizonMs?: () => number
}

const fieldManager = 'shoal-buildjob'
/** Changes are asked for with this overlap, for transactions that commit late. */
const overlapMs = 10_000
/** How much of the line is shown with its position. */
const shownPositions = 100

/** How soon a BuildJob of a Pipeline that isn't there looks for it again. */
const pipelineCheckMs = 3000

const keyOf = ({ namespace, name }: Pick<Job, 'namespace' | 'name'>) => `${namespace}/${name}`

/** Mirrors rows and BuildJobs. Runs on the leader. */
export class BuildJobController {
  readonly #options: BuildJobControllerOptions
  readonly #clock: Clock
  readonly #controller: Controller
  /** By `namespace/name`. */
  #positions = new Map<string, number>()
  /** The latest change of each row that was seen, while it may be read again. */
  #seen = new Map<number, number>()
  /** Tokens of the leases that were seen. */
  #leased = new Set<string>()
  #wake: AbortController | undefined

  constructor(options: BuildJobControllerOptions) {
    this.#options = options
    this.#clock = options.clock ?? systemClock
    this.#controller = new Controller({ ...options, name: 'buildjob', reconcile: (key) => this.#reconcile(key) })
    options.buildJobs.onChange((key, object) => object && this.#controller.enqueue(key))
  }

  /** Looks at the rows at once, not at the next poll. */
  notify(): void {
    this.#wake?.abort()
  }

  async run(signal: AbortSignal): Promise<void> {
    await Promise.all([this.#controller.run(signal), this.#poll(signal)])
  }

  async #poll(signal: AbortSignal): Promise<void> {
    const { database, log, pollMs = 300 } = this.#options
    let sinceMs: number | undefined
    while (!signal.aborted) {
      this.#wake = new AbortController()
      try {
        sinceMs ??= await this.#begin()
        // By pages: more rows than one holds may change within the overlap.
        let last: Pick<Change, 'ms' | 'rowId'> | undefined = { ms: sinceMs - overlapMs, rowId: 0 }
        while (last) {
          const changes: Change[] = await changesAfter(database, last)
          const news = changes.filter(({ rowId, ms }) => (this.#seen.get(rowId) ?? 0) < ms)
          for (const { rowId, ms } of news) this.#seen.set(rowId, ms)
          for (const job of await findJobs(database, [...new Set(news.map(({ jobId }) => jobId))]))
            this.#controller.enqueue(keyOf(job))
          last = changes.at(-1)
          sinceMs = last?.ms ?? sinceMs
        }
        this.#forget(sinceMs)
        await this.#seeClaims()
        await this.#movePositions()
      } catch (error) {
        log.info({ err: error }, 'reading the queue failed')
      }
      await this.#clock.sleep(pollMs, AbortSignal.any([signal, this.#wake.signal])).catch(() => undefined)
    }
  }

  /** Of all that was before, only what is not over, and what just is, may lack its object. Since when to look for changes. */
  async #begin(): Promise<number> {
    const { database } = this.#options
    const nowMs = await database.now()
    for (const job of await unfinishedJobs(database)) this.#controller.enqueue(keyOf(job))
    return nowMs - deletedAfterMs
  }

  /** A claim changes no row of `job`: it is in the lease. */
  async #seeClaims(): Promise<void> {
    const { database } = this.#options
    const held = await leases(database)
    const claimed = held.filter(({ token }) => !this.#leased.has(token)).map(({ jobId }) => jobId)
    for (const job of await findJobs(database, claimed)) this.#controller.enqueue(keyOf(job))
    this.#leased = new Set(held.map(({ token }) => token))
  }

  #forget(sinceMs: number): void {
    for (const [rowId, ms] of this.#seen) if (ms < sinceMs - overlapMs) this.#seen.delete(rowId)
  }

  /** Reconciles the objects whose position is not the one they show. */
  async #movePositions(): Promise<void> {
    this.#positions = await positions(this.#options.database, shownPositions)
    for (const object of this.#options.buildJobs.list()) {
      if (object.status?.phase !== 'Queued') continue
      const key = `${object.metadata.namespace}/${object.metadata.name}`
      if (object.status.queuePosition !== this.#positions.get(key)) this.#controller.enqueue(key)
    }
  }

  async #reconcile(key: string): Promise<ReconcileResult> {
    const [namespace = '', name = ''] = key.split('/')
    const object = this.#options.buildJobs.get(key)
    const job = await findJob(this.#options.database, namespace, name)
    if (!job) {
      if (object && !object.metadata.deletionTimestamp) return this.#adopt(object)
      return
    }
    if (object && (object.spec.commit !== job.commit || object.spec.pipelineRef !== job.pipeline)) {
      const message = `${name} was the build of ${job.pipeline} ${job.commit.slice(0, 12)}: take another name`
      return this.#stall(object, 'Conflict', message)
    }
    if (object) {
      if (object.spec.cancel && !job.cancel) await cancel(this.#options.database, job.id)
      if (object.spec.priority !== job.priority) await setPriority(this.#options.database, job.id, object.spec.priority)
    } else if (isFinal(job) && this.#mayBeDeleted(job)) return
    const current = object ?? (await this.#create(job))
    await this.#writeStatus(current, (await findJob(this.#options.database, namespace, name)) ?? job)
    return
  }

  /** Whether somebody deleted its object, or it was removed for its age. */
  #mayBeDeleted({ finishedAtMs }: Job): boolean {
    const endedMs = finishedAtMs ?? 0
    return this.#clock.now() - endedMs > deletedAfterMs || endedMs < (this.#options.horizonMs?.() ?? 0)
  }

  /** A BuildJob somebody made gets its row. One that has ended had its own, which is no longer kept. */
  async #adopt(object: BuildJob): Promise<ReconcileResult> {
    if (isFinal(object.status ?? {})) return
    const { database, pipeline } = this.#options
    const { namespace = '', name } = object.metadata
    const { pipelineRef, commit, ref, priority } = object.spec
    const known = pipeline(`${namespace}/${pipelineRef}`)
    if (!known) {
      await this.#stall(object, 'NotFound', `there is no Pipeline ${pipelineRef}`)
      return { afterMs: pipelineCheckMs }
    }
    const maxJobs = known.spec.concurrency.max
    await enqueue(database, { namespace, pipeline: pipelineRef, commit, ref, priority, maxJobs, name })
    this.#controller.enqueue(`${namespace}/${name}`)
    return
  }

  async #stall({ metadata, status }: BuildJob, reason: ErrorCode, message: string): Promise<undefined> {
    const before = status?.conditions ?? []
    const standing = { is: 'Stalled', reason, message } as const
    const conditions = standingConditions(before, standing, metadata.generation, this.#clock.now())
    if (isDeepStrictEqual(before, conditions)) return
    await this.#apply(metadata.namespace ?? '', metadata.name, { message, conditions })
  }

  async #create(job: Job): Promise<BuildJob> {
    const { cluster, pipeline } = this.#options
    const { namespace, name, pipeline: pipelineRef, commit, ref, priority } = job
    const owner = pipeline(`${namespace}/${pipelineRef}`)
    const { apiVersion, kind } = owner ?? {}
    const ownerReferences = owner && [{ apiVersion, kind, name: owner.metadata.name, uid: owner.metadata.uid }]
    const metadata = {
      name,
      namespace,
      labels: { 'shoal.dev/pipeline': pipelineRef },
      ...(owner && { ownerReferences }),
    }
    const spec = { pipelineRef, commit, ref, priority }
    try {
      return BuildJob.parse(await cluster.create(BuildJob, { ...BuildJob.make(metadata, spec) }))
    } catch (error) {
      if (!(error instanceof ApiError && error.reason === 'AlreadyExists')) throw error
      return BuildJob.parse(await cluster.get(BuildJob, namespace, name))
    }
  }

  async #writeStatus(object: BuildJob, job: Job): Promise<void> {
    const { events } = this.#options
    const { namespace, name } = job
    const position = this.#positions.get(keyOf(job))
    const status = buildJobStatus(job, { object, position, nowMs: this.#clock.now() })
    if (isDeepStrictEqual(object.status, status)) return
    await this.#apply(namespace, name, status)
    if (object.status?.phase === job.phase) return
    events.record(
      object,
      job.phase === 'Failed' ? 'Warning' : 'Normal',
      job.code ?? job.phase,
      status.message ?? job.phase,
    )
  }

  async #apply(namespace: string, name: string, status: BuildJob['status']): Promise<void> {
    const object = { metadata: { name, namespace }, status }
    await this.#options.cluster.apply(BuildJob, object, { fieldManager, subresource: 'status' })
  }
}
