import { isDeepStrictEqual } from 'node:util'
import { Region } from '../../api/region.ts'
import type { RegionalGoalState } from '../../api/regionalGoalState.ts'
import type { Replicas } from '../../artifacts/replicas.ts'
import { type Clock, systemClock } from '../../runtime/clock.ts'
import type { Cluster } from '../../runtime/cluster.ts'
import { Controller } from '../../runtime/controller.ts'
import { core } from '../../runtime/core.ts'
import type { Logger } from '../../runtime/log.ts'
import type { Metrics } from '../../runtime/metrics.ts'
import type { Reflector } from '../../runtime/reflector.ts'
import { accessOf } from './access.ts'
import type { RegionDirectory } from './directory.ts'
import { regionStatus } from './status.ts'

export interface RegionControllerOptions {
  cluster: Cluster
  /** The reflector that the directory reads, too. */
  regions: Reflector<Region>
  directory: RegionDirectory
  replicas: Replicas
  /** For the number of machines; absent: it isn't counted. */
  goals?: Reflector<RegionalGoalState>
  log: Logger
  metrics: Metrics
  clock?: Clock
  /** Between two looks at a region nothing happened to. Default 10,000. */
  resyncMs?: number
}

const fieldManager = 'shoal-region-controller'

/** Reconciles Regions: their access to the hub's API server, and their status. */
export class RegionController {
  readonly #options: RegionControllerOptions
  readonly #clock: Clock
  readonly #controller: Controller
  readonly #granted = new Set<string>()

  constructor(options: RegionControllerOptions) {
    this.#options = options
    this.#clock = options.clock ?? systemClock
    const reconcile = (key: string) => this.#reconcile(key)
    this.#controller = new Controller({ ...options, name: 'region', reconcile })
    // who is home concerns all of them
    options.regions.onChange(() => {
      for (const { metadata } of options.regions.list()) this.#controller.enqueue(metadata.name)
    })
    options.goals?.onChange((_, goal) => goal && this.#controller.enqueueAfter(goal.spec.region, 1000))
  }

  run(signal: AbortSignal): Promise<void> {
    return this.#controller.run(signal)
  }

  async #reconcile(name: string): Promise<{ afterMs: number } | undefined> {
    const { cluster, directory, replicas } = this.#options
    const region = directory.get(name)
    if (!region) return undefined
    const grant = `${name} ${region.metadata.uid}`
    if (!this.#granted.has(grant)) {
      for (const object of accessOf(name)) await cluster.apply(core[object.kind], object, { fieldManager })
      this.#granted.add(grant)
    }
    const homes = directory.all().filter(({ spec }) => spec.home)
    const silentMs = (await replicas.silence()).get(name)
    const facts = { region, homes: homes.map(({ metadata }) => metadata.name).sort(), silentMs }
    const status = regionStatus(facts, this.#machines(name), this.#clock.now())
    const object = { metadata: { name }, status }
    if (!isDeepStrictEqual(status, region.status))
      await cluster.apply(Region, object, { fieldManager, subresource: 'status' })
    // until the first contact it is looked at more often
    const resyncMs = this.#options.resyncMs ?? 10_000
    return { afterMs: silentMs === undefined ? Math.min(1000, resyncMs) : resyncMs }
  }

  /** The most that any goal selects; a region without goals shows none. */
  #machines(region: string): number {
    const goals = this.#options.goals?.list().filter(({ spec }) => spec.region === region) ?? []
    return Math.max(0, ...goals.map(({ status }) => status?.desired ?? 0))
  }
}
