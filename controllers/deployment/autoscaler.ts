import { Stalled } from '../../api/errors.ts'
import { type Need, type ScalePolicy, wantedWorkers } from '../../queue/autoscale.ts'
import { type QueueFigures, queueRates } from '../../queue/load.ts'
import { drain, type KnownWorker, stateOf, undrain } from '../../queue/workers.ts'
import type { Clock } from '../../runtime/clock.ts'
import type { Cluster } from '../../runtime/cluster.ts'
import { core } from '../../runtime/core.ts'
import type { EventRecorder } from '../../runtime/events.ts'
import type { Logger } from '../../runtime/log.ts'
import type { Gauge } from '../../runtime/metrics.ts'
import type { Database } from '../../runtime/sql.ts'
import { chooseToGo, podNameOf, podsOf, setDeletionCosts } from './pods.ts'
import { boundsOf, classOf, subjectOf, type WorkerDeployment } from './workerClass.ts'

export interface AutoscalerOptions {
  cluster: Cluster
  database: Database
  events: EventRecorder
  log: Logger
  clock: Clock
  /** By class. */
  wanted: Gauge<'class'>
  policy: Omit<ScalePolicy, 'classes'>
  /** A worker that was not heard for so long is no capacity. */
  alarmMs: number
}

/** One look at everything. */
export interface Look {
  deployments: WorkerDeployment[]
  workers: KnownWorker[]
  figures: QueueFigures
}

interface Class {
  deployment: WorkerDeployment
  workers: KnownWorker[]
  wanted: number
  why: string
}

/** A drained worker that nobody stopped for so long is of use again: somebody else has scaled. */
const drainedMs = 180_000

/** Writes the scale of the classes' Deployments. One at a time: on the leader. */
export class Autoscaler {
  readonly #o: AutoscalerOptions
  #recent: Need[] = []
  #sinceMs = Number.POSITIVE_INFINITY
  /** Since when each worker was seen draining, of the monotonic clock. */
  readonly #drained = new Map<string, number>()
  /** What was last logged of each Deployment that can't be scaled. */
  readonly #refused = new Map<string, string>()

  constructor(options: AutoscalerOptions) {
    this.#o = options
  }

  /** This process leads now, and knows nothing of what was needed before: for one cool-down nobody is let go. */
  begin(): void {
    this.#recent = []
    this.#sinceMs = this.#o.clock.monotonic()
    this.#drained.clear()
  }

  async scale({ deployments, workers, figures }: Look): Promise<void> {
    const { log, wanted, database } = this.#o
    const known = await this.#classes({ deployments, workers, figures })
    this.#noteDraining(workers)
    // Whom nobody would stop must not wait for it.
    const others = workers.filter((one) => one.draining && !known.some((it) => it.workers.includes(one)))
    await undrain(
      database,
      others.map(({ name }) => name),
    )
    wanted.reset()
    for (const one of known) wanted.set({ class: classOf(one.deployment) }, one.wanted)
    for (const one of known)
      await this.#scaleOne(one).catch((error: unknown) =>
        log.error({ err: error, deployment: one.deployment.metadata.name }, 'scaling failed'),
      )
  }

  /** Those whose bounds can be read, with what is wanted of them. */
  async #classes({ deployments, workers, figures }: Look): Promise<Class[]> {
    const { clock, policy, database, alarmMs } = this.#o
    const bounded = deployments.flatMap((deployment) => {
      const bounds = this.#boundsOf(deployment, deployments)
      return bounds ? [{ deployment, bounds }] : []
    })
    if (bounded.length === 0) return []
    // Those with hours come last: in their hours they are filled first.
    bounded.sort((a, b) => Number(a.bounds.hasHours) - Number(b.bounds.hasHours))
    const busy = Object.fromEntries(
      bounded.map(({ bounds: { name } }) => [
        name,
        workers.filter((one) => one.class === name && stateOf(one, alarmMs) === 'busy').length,
      ]),
    )
    const rates = await queueRates(database)
    const load = { nowMs: clock.monotonic(), ready: figures.ready, ...rates, busy }
    const wish = wantedWorkers({ ...policy, classes: bounded.map(({ bounds }) => bounds) }, load, this.#recent)
    this.#recent = wish.recent
    return bounded.map(({ deployment, bounds: { name, on } }) => {
      const counts = `${figures.ready} jobs ready, ${busy[name]} workers busy, builds take ${seconds(rates.buildMs)} s`
      const why = on ? counts : `outside its hours; ${counts}`
      return { deployment, workers: workers.filter((it) => it.class === name), wanted: wish.workers[name] ?? 0, why }
    })
  }

  #boundsOf(deployment: WorkerDeployment, all: WorkerDeployment[]) {
    const { log, events, clock } = this.#o
    try {
      const first = all.find((one) => classOf(one) === classOf(deployment))
      if (first && first !== deployment)
        throw new Stalled('Invalid', `Deployment ${first.metadata.name} has the class ${classOf(deployment)} too`)
      return boundsOf(deployment, clock.now())
    } catch (error) {
      if (!(error instanceof Stalled)) throw error
      const { name } = deployment.metadata
      if (this.#refused.get(name) !== error.message) log.info({ deployment: name, reason: error.message }, 'not scaled')
      this.#refused.set(name, error.message)
      events.record(subjectOf(deployment), 'Warning', error.code, `not scaled: ${error.message}`)
      return undefined
    }
  }

  async #scaleOne(one: Class): Promise<void> {
    const { clock, policy } = this.#o
    const { replicas } = one.deployment.spec
    const held = clock.monotonic() - this.#sinceMs < policy.coolDownMs
    const wanted = held ? Math.max(one.wanted, replicas) : one.wanted
    if (wanted < replicas) return this.#down(one, wanted)
    if (one.workers.some(({ draining }) => draining)) await this.#keep(one)
    if (wanted > replicas) await this.#write(one, wanted)
  }

  /** Drained workers that the ReplicaSet will not stop get jobs again; none that it has stopped: its process may take a while. */
  async #keep({ deployment, workers }: Class): Promise<void> {
    const { cluster, database, clock, log, alarmMs } = this.#o
    const pods = await podsOf(cluster, deployment, workers)
    const staying = pods.filter(({ deleting }) => !deleting)
    // While there are more than it was told to have, it is about to take them.
    const isSettled = staying.length <= deployment.spec.replicas
    const kept = new Set(staying.map(({ name }) => name))
    const names = workers
      .filter(({ name, draining }) => draining && kept.has(podNameOf(name)))
      .filter(({ name }) => isSettled || clock.monotonic() - (this.#drained.get(name) ?? 0) > drainedMs)
      .map(({ name }) => name)
    if (names.length === 0) return
    await undrain(database, names)
    log.info({ deployment: deployment.metadata.name, workers: names }, 'workers are not drained any more')
    await setDeletionCosts(cluster, deployment.metadata.namespace, { pods: staying, going: [], alarmMs })
  }

  /** Lets idle workers go; as many as there are, down to `wanted`. */
  async #down(one: Class, wanted: number): Promise<void> {
    const { cluster, database, alarmMs } = this.#o
    const { deployment, workers } = one
    const { replicas } = deployment.spec
    const pods = (await podsOf(cluster, deployment, workers)).filter(({ deleting }) => !deleting)
    // It is still at the last change, or rolls out another template: which Pods go is its own choice then.
    if (pods.length > replicas) return
    const missing = Math.min(replicas - wanted, replicas - pods.length)
    const chosen = chooseToGo(pods, replicas - wanted - missing, alarmMs)
    const drained = new Set(
      await drain(
        database,
        chosen.flatMap(({ worker }) => (worker ? [worker.name] : [])),
      ),
    )
    const going = chosen.filter(({ worker }) => !worker || drained.has(worker.name))
    if (missing + going.length === 0) return
    await setDeletionCosts(cluster, deployment.metadata.namespace, { pods, going, alarmMs })
    await this.#write(one, replicas - missing - going.length)
  }

  /** Only over what was looked at: a leader that was overtaken must not undo what the next one did. */
  async #write({ deployment, why }: Class, replicas: number): Promise<void> {
    const { cluster, events, log } = this.#o
    const { name, namespace, resourceVersion } = deployment.metadata
    const before = deployment.spec.replicas
    const body = { metadata: { resourceVersion }, spec: { replicas } }
    await cluster.patch(core.Deployment, { namespace, name, subresource: 'scale' }, body)
    log.info({ deployment: name, from: before, to: replicas, why }, 'scaled')
    const reason = replicas > before ? 'ScaledUp' : 'ScaledDown'
    events.record(subjectOf(deployment), 'Normal', reason, `from ${before} to ${replicas} workers: ${why}`)
  }

  #noteDraining(workers: KnownWorker[]): void {
    const now = this.#o.clock.monotonic()
    const draining = new Set(workers.filter((one) => one.draining).map(({ name }) => name))
    for (const name of this.#drained.keys()) if (!draining.has(name)) this.#drained.delete(name)
    for (const name of draining) if (!this.#drained.has(name)) this.#drained.set(name, now)
  }
}

const seconds = (ms: number) => Math.round(ms / 1000)
