/**
 * controllers/regionalGoalState/: a region's copy of what the hub tells it. Goals and index are watched in the hub's API
 * server, and read again every now and then in case the watch missed something; what the hub's signature covers goes
 * into the region's own API server and database, and what the machines report goes back. What can't be read or
 * verified changes nothing.
 */
import { isDeepStrictEqual } from 'node:util'
import { z } from 'zod'
import type { MachineCounts, MachineFailure } from '../../api/goalState.ts'
import { objectMeta } from '../../api/meta.ts'
import { indexName, mirrorLabel, mirrorNamespace, regionNamespace } from '../../api/regionApi.ts'
import { type ArtifactSpread, RegionalGoalState } from '../../api/regionalGoalState.ts'
import { type GoalPayload, type IndexPayload, openGoal, openIndex } from '../../rollout/envelope.ts'
import type { Clock } from '../../runtime/clock.ts'
import type { Cluster } from '../../runtime/cluster.ts'
import { Controller, type ReconcileResult } from '../../runtime/controller.ts'
import { core } from '../../runtime/core.ts'
import type { VerificationKey } from '../../runtime/dsse.ts'
import type { Logger } from '../../runtime/log.ts'
import type { Metrics } from '../../runtime/metrics.ts'
import { Reflector } from '../../runtime/reflector.ts'
import { rounds } from '../../runtime/rounds.ts'

/** Where a region keeps its goals, and what it knows of its machines. */
export interface GoalStore {
  put(payload: GoalPayload, envelope: string): Promise<boolean>
  putIndex(payload: IndexPayload, envelope: string): Promise<void>
  counts(): Promise<
    {
      namespace: string
      name: string
      counts: MachineCounts & {
        sequence: number
        revision: number
        halted: boolean
        manySilent: boolean
        highestSequence?: number
        failures: MachineFailure[]
        fetch?: ArtifactSpread
      }
    }[]
  >
}

export interface MirrorOptions {
  region: string
  hub: Cluster
  /** The region's own API server. */
  own: Cluster
  keys: VerificationKey[]
  store: GoalStore
  log: Logger
  metrics: Metrics
  clock: Clock
  /** Between two readings of everything, beside the watch. Default: 12 s. */
  pollMs?: number
  /** Between two looks at what machines report. Default: 500 ms. */
  reportMs?: number
}

const configMap = z.looseObject({ metadata: objectMeta, data: z.record(z.string(), z.string()).default({}) })
type ConfigMap = z.infer<typeof configMap>

const mirrorManager = 'shoal-mirror'
const statusManager = 'shoal-region'
/** Unchanged counts are said again so often, so that the hub can tell old from silent. */
const renewReportMs = 10_000

type Status = NonNullable<RegionalGoalState['status']>

/** The mirror of one region. Every replica runs it: they write the same. */
export class GoalMirror {
  readonly #options: MirrorOptions
  readonly #goals: Reflector<RegionalGoalState>
  readonly #indexes: Reflector<ConfigMap>
  readonly #controller: Controller
  readonly #reported = new Map<string, { status: Status; at: number }>()
  readonly #mirrored = new Map<string, number>()

  constructor(options: MirrorOptions) {
    const { hub, region, log, pollMs = 12_000 } = options
    const selection = { namespace: regionNamespace(region) }
    this.#options = options
    const relistMs = pollMs
    // A watch is ended and everything listed at least every pollMs.
    const watchSeconds = Math.max(1, Math.round(pollMs / 1000))
    const parse = (object: unknown) => RegionalGoalState.parse(object)
    this.#goals = new Reflector({
      cluster: hub,
      resource: RegionalGoalState,
      selection,
      parse,
      log,
      relistMs,
      watchSeconds,
    })
    this.#indexes = new Reflector({
      cluster: hub,
      resource: core.ConfigMap,
      selection: { ...selection, fieldSelector: `metadata.name=${indexName}` },
      parse: (object) => configMap.parse(object),
      log,
      relistMs,
      watchSeconds,
    })
    this.#controller = new Controller({ ...options, name: 'mirror', reconcile: (key) => this.#reconcile(key) })
    this.#goals.onChange((key) => this.#controller.enqueue(`goal ${key}`))
    this.#indexes.onChange((key) => this.#controller.enqueue(`index ${key}`))
  }

  /** Whether the hub's goals were read once. */
  synced(): Promise<unknown> {
    return Promise.all([this.#goals.synced(), this.#indexes.synced()])
  }

  async run(signal: AbortSignal): Promise<void> {
    await Promise.all([
      this.#goals.run(signal),
      this.#indexes.run(signal),
      this.#controller.run(signal),
      this.#report(signal),
    ])
  }

  #reconcile(kindAndKey: string): Promise<ReconcileResult> {
    const [kind, key = ''] = kindAndKey.split(' ')
    return kind === 'index' ? this.#takeIndex(key) : this.#takeGoal(key)
  }

  async #takeIndex(key: string): Promise<undefined> {
    const envelope = this.#indexes.get(key)?.data.envelope
    if (envelope === undefined) return
    const payload = this.#verified(key, () => openIndex(envelope, this.#options.keys))
    if (payload) await this.#options.store.putIndex(payload, envelope)
    return
  }

  async #takeGoal(key: string): Promise<undefined> {
    const { keys, store, region, log } = this.#options
    const object = this.#goals.get(key)
    const name = key.split('/').at(-1) ?? ''
    if (!object) {
      // Which goals are offered is the index's to say; the mirror only follows what is there.
      await this.#options.own.delete(RegionalGoalState, mirrorNamespace(region), name)
      this.#mirrored.delete(name)
      return
    }
    const { envelope } = object.spec
    const payload = this.#verified(key, () => openGoal(envelope, keys))
    if (!payload) return
    if (`${payload.namespace}.${payload.name}` !== name) return this.#refuse(key, 'it is another goal’s envelope')
    if (!(await store.put(payload, envelope))) return this.#refuse(key, 'a later sequence is here already')
    if (this.#mirrored.get(name) === payload.sequence) return
    await this.#mirror(name, object)
    this.#mirrored.set(name, payload.sequence)
    log.info(
      { goal: name, revision: payload.revision, sequence: payload.sequence, target: object.spec.target },
      'goal taken over',
    )
    return
  }

  async #mirror(name: string, { spec, metadata }: RegionalGoalState): Promise<void> {
    const { own, region } = this.#options
    const namespace = mirrorNamespace(region)
    if (!(await own.get(core.Namespace, undefined, namespace)))
      await own.apply(core.Namespace, { metadata: { name: namespace } }, { fieldManager: mirrorManager })
    const labels = { ...metadata.labels, [mirrorLabel]: region }
    const copy = RegionalGoalState.make({ name, namespace, labels }, spec)
    await own.apply(RegionalGoalState, copy, { fieldManager: mirrorManager })
  }

  /** What the signature covers, when it is for this region. */
  #verified<Payload extends { region: string }>(key: string, open: () => Payload): Payload | undefined {
    try {
      const payload = open()
      if (payload.region === this.#options.region) return payload
      this.#refuse(key, `it is for region ${payload.region}`)
    } catch (error) {
      this.#refuse(key, (error as Error).message)
    }
    return undefined
  }

  #refuse(key: string, why: string): undefined {
    const { log, metrics } = this.#options
    metrics.counter('refused_envelopes_total', 'What the hub’s API server held and this region did not take.').inc()
    log.error({ key, why }, 'envelope refused')
    return undefined
  }

  #report(signal: AbortSignal): Promise<void> {
    const { clock, log, reportMs = 500, store } = this.#options
    const report = async () => {
      for (const { namespace, name, counts } of await store.counts())
        await this.#reportGoal(`${namespace}.${name}`, counts)
    }
    const failed = (err: unknown) => log.info({ err }, 'reporting to the hub failed')
    return rounds(report, { everyMs: reportMs, clock, signal, failed })
  }

  async #reportGoal(name: string, counts: Awaited<ReturnType<GoalStore['counts']>>[number]['counts']): Promise<void> {
    const { hub, region, clock } = this.#options
    const namespace = regionNamespace(region)
    if (!this.#goals.get(`${namespace}/${name}`)) return
    const { sequence, revision, ...rest } = counts
    const status: Status = { ...rest, observedSequence: sequence, observedRevision: revision }
    const before = this.#reported.get(name)
    const now = clock.monotonic()
    if (before && now - before.at < renewReportMs && isDeepStrictEqual(before.status, status)) return
    const reported = { ...status, reportedAt: new Date(clock.now()).toISOString() }
    const object = { metadata: { name, namespace }, status: reported }
    await hub.apply(RegionalGoalState, object, { fieldManager: statusManager, subresource: 'status' })
    this.#reported.set(name, { status, at: now })
  }
}
