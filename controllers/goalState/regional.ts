import type { GoalState } from '../../api/goalState.ts'
import { regionNamespace } from '../../api/regionApi.ts'
import { RegionalGoalState } from '../../api/regionalGoalState.ts'
import { type GoalPayload, nextSequence, openGoal, signGoal } from '../../rollout/envelope.ts'
import { showTarget } from '../../rollout/plan.ts'
import { type Clock, systemClock } from '../../runtime/clock.ts'
import type { Cluster } from '../../runtime/cluster.ts'
import type { SigningKey } from '../../runtime/dsse.ts'
import type { Reflector } from '../../runtime/reflector.ts'

/** What a region is told, before it is numbered and dated. */
export type Order = Omit<GoalPayload, 'sequence' | 'issuedAt'>

const fieldManager = 'shoal-goalstate'
const uidLabel = 'shoal.dev/goal-uid'

/** What the hub tells regions of goals: signed, and in growing sequence. */
export class RegionalGoals {
  readonly #cluster: Cluster
  readonly #reflector: Reflector<RegionalGoalState>
  readonly #key: SigningKey
  readonly #clock: Clock

  constructor(options: {
    cluster: Cluster
    reflector: Reflector<RegionalGoalState>
    signingKey: SigningKey
    clock?: Clock
  }) {
    this.#cluster = options.cluster
    this.#reflector = options.reflector
    this.#key = options.signingKey
    this.#clock = options.clock ?? systemClock
  }

  /** Those of one goal. */
  of({ metadata }: GoalState): RegionalGoalState[] {
    return this.#reflector.list().filter((regional) => regional.metadata.labels?.[uidLabel] === metadata.uid)
  }

  in(goal: GoalState, region: string): RegionalGoalState | undefined {
    return this.of(goal).find((regional) => regional.spec.region === region)
  }

  /** Signs and writes what a region is told, if it is something new. */
  async tell(goal: GoalState, order: Order): Promise<void> {
    const { namespace = '', name, uid = '' } = goal.metadata
    const known = this.in(goal, order.region)
    const before = known && this.#open(known)
    const observed = Math.max(known?.status?.observedSequence ?? 0, known?.status?.highestSequence ?? 0)
    // A region that has heard more than is written here was told so before this API server was restored from a backup.
    if (before && equal(order, before) && observed <= before.sequence) return
    const nowMs = this.#clock.now()
    const sequence = nextSequence([before?.sequence ?? known?.spec.sequence ?? 0, observed], nowMs, Math.random)
    const payload: GoalPayload = { ...order, sequence, issuedAt: nowMs }
    const regional = RegionalGoalState.make(
      {
        name: `${namespace}.${name}`,
        namespace: regionNamespace(order.region),
        labels: { 'shoal.dev/goal-namespace': namespace, 'shoal.dev/goal-name': name, [uidLabel]: uid },
      },
      {
        envelope: signGoal(payload, this.#key),
        region: order.region,
        goal: { namespace, name, uid },
        artifact: order.template.artifact.name,
        revision: order.revision,
        sequence,
        target: showTarget(order.target),
        halted: order.halted,
      },
    )
    await this.#cluster.apply(RegionalGoalState, regional, { fieldManager })
  }

  /** The highest revision that a region says it has; 0 without one. */
  reported(goal: GoalState): number {
    return Math.max(0, ...this.of(goal).map(({ status }) => status?.observedRevision ?? 0))
  }

  async remove({ metadata }: RegionalGoalState): Promise<void> {
    await this.#cluster.delete(RegionalGoalState, metadata.namespace, metadata.name)
  }

  /** What was told before; undefined when it can't be read, so that it is told anew. */
  #open({ spec }: RegionalGoalState): GoalPayload | undefined {
    try {
      return openGoal(spec.envelope, [this.#key])
    } catch {
      return undefined
    }
  }
}

function equal(order: Order, { sequence, issuedAt, ...before }: GoalPayload): boolean {
  return canonical(order) === canonical(before)
}

const canonical = (value: unknown): string =>
  JSON.stringify(value, (_key, part: unknown) =>
    part !== null && typeof part === 'object' && !Array.isArray(part)
      ? Object.fromEntries(Object.entries(part).sort(([a], [b]) => (a < b ? -1 : 1)))
      : part,
  )
