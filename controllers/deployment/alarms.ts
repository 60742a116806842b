import { isDeepStrictEqual } from 'node:util'
import { forget, type KnownWorker, stateOf } from '../../queue/workers.ts'
import type { Clock } from '../../runtime/clock.ts'
import { ApiError, type Cluster } from '../../runtime/cluster.ts'
import { core } from '../../runtime/core.ts'
import type { EventRecorder } from '../../runtime/events.ts'
import type { Logger } from '../../runtime/log.ts'
import type { Database } from '../../runtime/sql.ts'
import type { AlarmNote } from './alarmWebhook.ts'
import { podNameOf, podsOf, type WorkerPod } from './pods.ts'
import { classOf, subjectOf, type WorkerDeployment } from './workerClass.ts'

export interface WorkerAlarmsOptions {
  cluster: Cluster
  database: Database
  /** The hub's. */
  namespace: string
  events: EventRecorder
  log: Logger
  clock: Clock
  /** Silence that is an alarm. */
  alarmMs: number
  /** Tells somebody. */
  notify?: ((note: AlarmNote) => void) | undefined
}

const conditionType = 'WorkersResponsive'
const fieldManager = 'shoal-worker-alarms'

/**
 * Raises an alarm for each worker that is silent, has its Pod replaced, and takes the alarm back when the worker is
 * heard again or forgotten. A silent worker whose Pod is gone, or has a later worker in it, is forgotten without ado:
 * it was replaced.
 */
export class WorkerAlarms {
  readonly #o: WorkerAlarmsOptions
  /** As they were when their alarm was raised. */
  readonly #raised = new Map<string, KnownWorker>()

  constructor(options: WorkerAlarmsOptions) {
    this.#o = options
  }

  /** This process leads now: alarms that stand are raised anew. */
  begin(): void {
    this.#raised.clear()
  }

  /** `silent`: names; undefined while nobody knows, which changes nothing. */
  async look(silent: string[] | undefined, deployments: WorkerDeployment[], workers: KnownWorker[]): Promise<void> {
    if (!silent) return
    const known = new Map(workers.map((worker) => [worker.name, worker]))
    for (const worker of this.#raised.values())
      if (!silent.includes(worker.name))
        this.#resolve(worker, known.has(worker.name) ? 'is heard again' : 'is forgotten', deployments)
    // By its row, too: it may have been heard since.
    const affected = silent
      .flatMap((name) => known.get(name) ?? [])
      .filter((worker) => stateOf(worker, this.#o.alarmMs) === 'silent')
    for (const name of new Set(affected.map((worker) => worker.class))) {
      const its = affected.filter((worker) => worker.class === name)
      // More than one by mistake: that is for the autoscaler to say.
      const own = deployments.filter((deployment) => classOf(deployment) === name)
      if (own.length > 0) await this.#replace(its, own, workers)
      else for (const worker of its) this.#raise(worker, undefined)
    }
    for (const deployment of deployments) await this.#report(deployment).catch(this.#failed('condition not written'))
  }

  /** One that can't be helped keeps nobody from hearing of the others; the next look tries again. */
  #failed(what: string): (error: unknown) => undefined {
    return (error) => {
      this.#o.log.error({ err: error }, what)
      return undefined
    }
  }

  async #replace(silent: KnownWorker[], own: WorkerDeployment[], workers: KnownWorker[]): Promise<void> {
    const { cluster, database, log } = this.#o
    const [deployment] = own
    const listed = Promise.all(own.map((one) => podsOf(cluster, one, workers)))
    const pods = (await listed.catch(this.#failed('Pods of silent workers not read')))?.flat()
    if (!pods) {
      for (const worker of silent) this.#raise(worker, deployment)
      return
    }
    const inPod = (worker: KnownWorker) =>
      pods.find((pod) => pod.name === podNameOf(worker.name) && pod.worker?.name === worker.name)
    const gone = await forget(
      database,
      silent.filter((worker) => !inPod(worker)).map(({ name }) => name),
    )
    if (gone.length > 0) log.info({ workers: gone }, 'silent workers are forgotten: their Pods are gone')
    for (const name of gone) {
      const worker = this.#raised.get(name)
      if (worker) this.#resolve(worker, 'was replaced', own)
    }
    for (const worker of silent) {
      const pod = inPod(worker)
      if (!pod) continue
      this.#raise(worker, deployment)
      if (!pod.deleting) await this.#delete(pod).catch(this.#failed('Pod of a silent worker not deleted'))
    }
  }

  /** The ReplicaSet makes another. */
  async #delete({ name, uid }: WorkerPod): Promise<void> {
    const { cluster, log, namespace } = this.#o
    const conditions = uid === undefined ? undefined : { uid }
    await cluster.delete(core.Pod, namespace, name, conditions).catch((error: unknown) => {
      // Another Pod has its name by now.
      if (!(error instanceof ApiError && error.status === 409)) throw error
    })
    log.info({ pod: name }, 'Pod of a silent worker deleted')
  }

  #raise(worker: KnownWorker, deployment: WorkerDeployment | undefined): void {
    const { log, notify } = this.#o
    if (this.#raised.has(worker.name)) return
    this.#raised.set(worker.name, worker)
    const note = this.#note('raised', worker, `worker ${worker.name} is silent since ${isoTime(worker.lastSeenMs)}`)
    log.error({ worker: worker.name, silentSeconds: note.silentSeconds }, 'worker is silent')
    this.#event(deployment, 'Warning', 'WorkerSilent', note.message)
    notify?.(note)
  }

  #resolve(worker: KnownWorker, how: string, deployments: WorkerDeployment[]): void {
    const { log, notify } = this.#o
    this.#raised.delete(worker.name)
    const note = this.#note('resolved', worker, `worker ${worker.name} ${how}`)
    log.info({ worker: worker.name, how }, 'worker is not silent any more')
    const deployment = deployments.find((one) => classOf(one) === worker.class)
    this.#event(deployment, 'Normal', 'WorkerNotSilent', note.message)
    notify?.(note)
  }

  #note(state: AlarmNote['state'], worker: KnownWorker, message: string): AlarmNote {
    const { namespace } = this.#o
    const silentSeconds = Math.max(0, Math.round((worker.nowMs - worker.lastSeenMs) / 1000))
    const lastSeen = isoTime(worker.lastSeenMs)
    return {
      alarm: 'WorkerSilent',
      state,
      worker: worker.name,
      class: worker.class,
      ...{ silentSeconds, lastSeen, namespace, message },
    }
  }

  /** On the hub's own Deployment where the class has none. */
  #event(deployment: WorkerDeployment | undefined, type: 'Normal' | 'Warning', reason: string, note: string): void {
    const { events, namespace } = this.#o
    events.record(subjectOf(deployment ?? { metadata: { name: 'shoal-hub', namespace } }), type, reason, note)
  }

  /** The Deployment's own controller leaves conditions that it doesn't know as they are. */
  async #report(deployment: WorkerDeployment): Promise<void> {
    const { cluster, clock } = this.#o
    const { name, namespace } = deployment.metadata
    const silent = [...this.#raised.values()].filter((worker) => worker.class === classOf(deployment))
    const names = silent.map((worker) => worker.name).sort()
    const others = names.length > 10 ? ` and ${names.length - 10} more` : ''
    const wanted =
      names.length === 0
        ? { status: 'True', reason: 'AllHeard', message: 'no worker is silent' }
        : { status: 'False', reason: 'WorkerSilent', message: `silent: ${names.slice(0, 10).join(', ')}${others}` }
    const before = deployment.status?.conditions.find(({ type }) => type === conditionType)
    if (before && isDeepStrictEqual({ status: before.status, reason: before.reason, message: before.message }, wanted))
      return
    const now = isoTime(clock.now())
    const lastTransitionTime = before?.status === wanted.status ? (before.lastTransitionTime ?? now) : now
    const condition = { type: conditionType, ...wanted, lastUpdateTime: now, lastTransitionTime }
    const object = { metadata: { name, namespace }, status: { conditions: [condition] } }
    await cluster.apply(core.Deployment, object, { fieldManager, subresource: 'status' })
  }
}

/** Without milliseconds: a condition's times have none. */
const isoTime = (ms: number) => `${new Date(ms).toISOString().slice(0, 19)}Z`
