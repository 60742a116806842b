import { workerState } from '../../api/workersApi.ts'
import type { ScalePolicy } from '../../queue/autoscale.ts'
import { type QueueFigures, queueFigures } from '../../queue/load.ts'
import { type KnownWorker, listWorkers, stateOf } from '../../queue/workers.ts'
import { type Clock, systemClock } from '../../runtime/clock.ts'
import type { Cluster } from '../../runtime/cluster.ts'
import type { EventRecorder } from '../../runtime/events.ts'
import type { Logger } from '../../runtime/log.ts'
import type { Gauge, Metrics } from '../../runtime/metrics.ts'
import { rounds } from '../../runtime/rounds.ts'
import type { Database } from '../../runtime/sql.ts'
import { WorkerAlarms } from './alarms.ts'
import { AlarmWebhook } from './alarmWebhook.ts'
import { Autoscaler } from './autoscaler.ts'
import { listDeployments } from './workerClass.ts'

export interface WorkersControllerOptions {
  cluster: Cluster
  database: Database
  events: EventRecorder
  log: Logger
  metrics: Metrics
  clock?: Clock
  /** The hub's, where the workers' Deployments are. */
  namespace: string
  policy: Omit<ScalePolicy, 'classes'>
  alarmMs: number
  /** Workers that are silent now; undefined while nobody knows. */
  silent: () => string[] | undefined
  webhook?: { url: string; secret?: string | undefined } | undefined
  /** Between two looks. Default: 5 s. */
  intervalMs?: number
}

/** Looks at queue and workers every few seconds: metrics, alarms, scale. Runs on the leader. */
export class WorkersController {
  readonly #o: WorkersControllerOptions
  readonly #clock: Clock
  readonly #alarms: WorkerAlarms
  readonly #autoscaler: Autoscaler
  readonly #webhook: AlarmWebhook | undefined
  readonly #gauges: ReturnType<typeof gauges>

  constructor(options: WorkersControllerOptions) {
    this.#o = options
    this.#clock = options.clock ?? systemClock
    const parts = { ...options, clock: this.#clock }
    const webhook = options.webhook && new AlarmWebhook({ ...parts, ...options.webhook })
    this.#webhook = webhook
    this.#alarms = new WorkerAlarms({ ...parts, notify: webhook && ((note) => webhook.send(note)) })
    this.#gauges = gauges(options.metrics)
    this.#autoscaler = new Autoscaler({ ...parts, wanted: this.#gauges.wanted })
  }

  async run(signal: AbortSignal): Promise<void> {
    const { log, intervalMs = 5000 } = this.#o
    this.#alarms.begin()
    this.#autoscaler.begin()
    const notifying = this.#webhook?.run(signal)
    const failed = (err: unknown) => log.error({ err }, 'looking after the workers failed')
    await rounds(() => this.round(), { everyMs: intervalMs, clock: this.#clock, signal, failed })
    // Who leads next says how it is.
    for (const gauge of Object.values(this.#gauges)) gauge.reset()
    this.#gauges.oldestReady.remove()
    await notifying
  }

  /** One look. */
  async round(): Promise<void> {
    const { database, cluster, namespace, silent, log } = this.#o
    const figures = await queueFigures(database)
    const workers = await listWorkers(database)
    this.#measure(figures, workers)
    // Without the API server nobody is scaled or replaced; somebody is told all the same.
    const deployments = await listDeployments(cluster, namespace).catch((error: unknown) => {
      log.error({ err: error }, 'the workers’ Deployments can’t be listed')
    })
    await this.#alarms.look(silent(), deployments ?? [], workers)
    if (deployments) await this.#autoscaler.scale({ deployments, workers, figures })
  }

  #measure({ ready, blocked, running, oldestReadyMs }: QueueFigures, workers: KnownWorker[]): void {
    const { jobs, oldestReady, workers: byState } = this.#gauges
    jobs.set({ state: 'ready' }, ready)
    jobs.set({ state: 'blocked' }, blocked)
    jobs.set({ state: 'running' }, running)
    oldestReady.set((oldestReadyMs ?? 0) / 1000)
    byState.reset()
    for (const name of new Set(workers.map((worker) => worker.class)))
      for (const state of workerState.options) byState.set({ class: name, state }, 0)
    for (const worker of workers) byState.inc({ class: worker.class, state: stateOf(worker, this.#o.alarmMs) })
  }
}

/** Of the leader alone, so that a sum over replicas is right. */
const gauges = (metrics: Metrics) => ({
  jobs: metrics.gauge('queue_jobs', 'Jobs in the queue: ready, blocked by their pipeline’s limit, running.', ['state']),
  oldestReady: metrics.gauge('queue_oldest_ready_seconds', 'Since the longest waiting ready job was queued.') as Gauge,
  workers: metrics.gauge('workers', 'Workers that were heard and not forgotten.', ['class', 'state']),
  wanted: metrics.gauge('workers_wanted', 'Workers that the queue needs now, within bounds.', ['class']),
})
