import { indexName, regionNamespace } from '../../api/regionApi.ts'
import type { RegionalGoalState } from '../../api/regionalGoalState.ts'
import { type IndexPayload, openIndex, signIndex } from '../../rollout/envelope.ts'
import { type Clock, systemClock } from '../../runtime/clock.ts'
import type { Cluster } from '../../runtime/cluster.ts'
import { Controller } from '../../runtime/controller.ts'
import { core } from '../../runtime/core.ts'
import type { SigningKey } from '../../runtime/dsse.ts'
import type { Logger } from '../../runtime/log.ts'
import type { Metrics } from '../../runtime/metrics.ts'
import type { Reflector } from '../../runtime/reflector.ts'

export interface IndexWriterOptions {
  cluster: Cluster
  goals: Reflector<RegionalGoalState>
  /** Whether every wave of the revision is complete. */
  isSettled: (spec: RegionalGoalState['spec']) => boolean
  /** Every region, by name. */
  regions: () => string[]
  signingKey: SigningKey
  log: Logger
  metrics: Metrics
  clock?: Clock
  /** Default: 20 s. A region grants for 60 s after the last one it saw. */
  renewMs?: number
}

/** Signs and writes each region's index: at every change of its goals, and every `renewMs`. Runs on the leader. */
export class IndexWriter {
  readonly #options: IndexWriterOptions
  readonly #controller: Controller
  readonly #issuedAt = new Map<string, number>()

  constructor(options: IndexWriterOptions) {
    this.#options = options
    this.#controller = new Controller({ ...options, name: 'index', reconcile: (region) => this.#write(region) })
    options.goals.onChange((_key, goal, previous) => {
      const sequence = goal?.spec.sequence
      const region = (goal ?? previous)?.spec.region
      if (region !== undefined && sequence !== previous?.spec.sequence) this.#controller.enqueue(region)
    })
  }

  /** A region that is new gets its index now. */
  notify(region: string): void {
    this.#controller.enqueue(region)
  }

  async run(signal: AbortSignal): Promise<void> {
    // Another may have led meanwhile.
    this.#issuedAt.clear()
    for (const region of this.#options.regions()) this.#controller.enqueue(region)
    await this.#controller.run(signal)
  }

  async #write(region: string): Promise<{ afterMs: number } | undefined> {
    const { cluster, goals, regions, isSettled, signingKey, clock = systemClock, renewMs = 20_000 } = this.#options
    if (!regions().includes(region)) return undefined
    const named = goals.list().filter(({ spec, metadata }) => spec.region === region && !metadata.deletionTimestamp)
    // Whoever wrote the last one may have had a clock that is ahead: regions take only what is later.
    const last = this.#issuedAt.get(region) ?? (await this.#readIssuedAt(region))
    const issuedAt = Math.max(clock.now(), last + 1)
    const payload: IndexPayload = {
      region,
      issuedAt,
      goals: Object.fromEntries(
        named.map(({ spec }) => [
          `${spec.goal.namespace}/${spec.goal.name}`,
          { revision: spec.revision, sequence: spec.sequence, ...(isSettled(spec) && { settled: true }) },
        ]),
      ),
    }
    const object = {
      metadata: { name: indexName, namespace: regionNamespace(region) },
      data: { envelope: signIndex(payload, signingKey) },
    }
    await cluster.apply(core.ConfigMap, object, { fieldManager: 'shoal-index' })
    this.#issuedAt.set(region, issuedAt)
    return { afterMs: renewMs }
  }

  /** Of the index that is there; 0 without one that can be read. */
  async #readIssuedAt(region: string): Promise<number> {
    const { cluster, signingKey } = this.#options
    const found = await cluster.get<{ data?: { envelope?: string } }>(
      core.ConfigMap,
      regionNamespace(region),
      indexName,
    )
    try {
      return openIndex(found?.data?.envelope ?? '', [signingKey]).issuedAt
    } catch {
      return 0
    }
  }
}
