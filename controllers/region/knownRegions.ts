import { regionsName } from '../../api/regionApi.ts'
import type { Cluster } from '../../runtime/cluster.ts'
import { Controller } from '../../runtime/controller.ts'
import { core } from '../../runtime/core.ts'
import type { Logger } from '../../runtime/log.ts'
import type { Metrics } from '../../runtime/metrics.ts'

export interface KnownRegionsOptions {
  cluster: Cluster
  /** The hub's. */
  namespace: string
  /** The names of all, sorted. */
  regions: () => string[]
  log: Logger
  metrics: Metrics
}

/** Somebody may have changed it by hand. */
const renewMs = 60_000

/**
 * Keeps the regions' names where admission looks for them: a policy can't look at other objects, and refuses goals that
 * name a region there is not (manifests/hub/admission.yaml). Runs on the leader.
 */
export class KnownRegions {
  readonly #controller: Controller

  constructor(options: KnownRegionsOptions) {
    const { cluster, namespace, regions } = options
    const reconcile = async (name: string) => {
      const object = { metadata: { name, namespace }, data: { names: regions().join(' ') } }
      await cluster.apply(core.ConfigMap, object, { fieldManager: 'shoal-regions' })
      return { afterMs: renewMs }
    }
    this.#controller = new Controller({ ...options, name: 'knownregions', reconcile })
  }

  /** A region has come or gone. */
  notify(): void {
    this.#controller.enqueue(regionsName)
  }

  async run(signal: AbortSignal): Promise<void> {
    this.notify()
    await this.#controller.run(signal)
  }
}
