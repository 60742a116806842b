import { type ShoalError, Stalled, Waiting } from '../../api/errors.ts'
import type { GoalState } from '../../api/goalState.ts'
import { durationMs } from '../../api/meta.ts'
import { chooseTemplate } from '../../rollout/effective.ts'
import { freezeProblem } from '../../rollout/freeze.ts'
import { regionsOf, rollbackWaves, wavesOf } from '../../rollout/plan.ts'
import type { Clock } from '../../runtime/clock.ts'
import type { EventRecorder } from '../../runtime/events.ts'
import type { Logger } from '../../runtime/log.ts'
import type { Reflector } from '../../runtime/reflector.ts'
import type { RegionDirectory } from '../region/directory.ts'
import { conflictOf } from './place.ts'
import type { RegionalGoals } from './regional.ts'
import type { ReplicaGate } from './replicaGate.ts'
import type { Revisions } from './revisions.ts'
import { type GoalStatus, startRollout, statusOf } from './status.ts'
import { specOf, type Templates } from './templates.ts'

interface RolloutStartOptions {
  goals: Reflector<GoalState>
  revisions: Revisions
  regionalGoals: RegionalGoals
  regions: RegionDirectory
  requestReplication: (namespace: string, artifact: string) => Promise<void>
  replicas: ReplicaGate
  templates: Templates
  /** Writes the status of a goal. */
  write: (goal: GoalState, status: GoalStatus) => Promise<void>
  events: EventRecorder
  log: Logger
  clock: Clock
}

/** Decides what machines shall run, and begins a rollout when that is something new. */
export class RolloutStart {
  readonly #options: RolloutStartOptions

  constructor(options: RolloutStartOptions) {
    this.#options = options
  }

  /**
   * The status in which what machines shall run is effective. @throws Waiting or Stalled when something stands in the way:
   * what is effective goes on meanwhile.
   */
  async makeEffective(goal: GoalState, status: GoalStatus): Promise<GoalStatus> {
    const { revisions, regionalGoals, goals, events, log } = this.#options
    const conflict = conflictOf(goal, goals.list())
    if (conflict) throw new Stalled('PlaceConflict', conflict)
    const unreadable = goal.spec.rollout.freeze?.map(freezeProblem).find((problem) => problem !== undefined)
    if (unreadable !== undefined) throw new Stalled('Invalid', unreadable)
    const wanted = this.#options.templates.wanted(goal)
    if (!wanted) throw this.#waiting(goal, 'ArtifactNotFound', `there is no Artifact ${goal.spec.artifactRef.name}`)
    const choice = chooseTemplate({
      ...{ wanted: wanted.hash, status, onFailure: goal.spec.rollout.onFailure },
      holdOf: (template) => revisions.holdOf(goal, template),
      templateOf: (revision) => revisions.hashOf(goal, revision),
    })
    if (!choice) return status
    const { template: hash, rollback } = choice
    const regions = rollback ? (status.regionsInRollout ?? []) : this.#regions(goal)
    const waves = rollback ? rollbackWaves : wavesOf(goal.spec.rollout, regions)
    if (!rollback) await this.#requireReplicas(goal, regions)
    const template = rollback ? revisions.templateOf(goal, hash) : specOf(goal)
    if (!template) throw new Stalled('ArtifactNotFound', `the last good template ${hash} is not kept any more`)
    const revision = await revisions.add(goal, hash, template, regionalGoals.reported(goal))
    log.info({ goal: goal.metadata.name, revision, rollback, waves: waves.length }, 'rollout begins')
    const note = `${rollback ? 'going back to' : 'rolling out'} ${template.artifactRef.name} as revision ${revision}`
    events.record(goal, rollback ? 'Warning' : 'Normal', rollback ? 'RollingBack' : 'RollingOut', note)
    const effective = { template: hash, revision, artifact: template.artifactRef.name }
    const begun = startRollout(status, { effective, rollback, regions, nowMs: this.#options.clock.now() })
    // Written before any region is told, so that a hub that dies here goes on with the same revision.
    await this.#options.write(goal, statusOf(goal, { status: begun, nowMs: this.#options.clock.now() }))
    return begun
  }

  #regions(goal: GoalState): string[] {
    const { regions } = this.#options
    const named = regionsOf(goal.spec.rollout, regions.activeRegions())
    const unknown = named.find((name) => !regions.get(name))
    if (unknown !== undefined) throw new Stalled('RegionUnknown', `a wave names region ${unknown}`)
    const active = regions.activeRegions()
    return named.filter((name) => active.includes(name))
  }

  /** Nothing is propagated until every region of the rollout has the artifact. */
  async #requireReplicas(goal: GoalState, regions: string[]): Promise<void> {
    const name = goal.spec.artifactRef.name
    const lacking = this.#options.replicas.lacking(this.#options.templates.artifact(goal, name), regions)
    if (lacking.length === 0) return
    await this.#options.requestReplication(goal.metadata.namespace ?? '', name)
    throw this.#waiting(goal, 'WaitingForArtifact', `${name} is not yet in ${lacking.join(', ')}`)
  }

  /** Waiting, and Stalled once it took progressDeadline. */
  #waiting(goal: GoalState, code: 'ArtifactNotFound' | 'WaitingForArtifact', message: string): ShoalError {
    const since = goal.status?.conditions?.find(
      ({ type, reason }) => type === 'Reconciling' && reason === 'WaitingForArtifact',
    )
    const stalled = goal.status?.conditions?.find(({ type, reason }) => type === 'Stalled' && reason === code)
    const current = goal.status?.observedGeneration === goal.metadata.generation
    const waitedMs = since && current ? this.#options.clock.now() - Date.parse(since.lastTransitionTime) : 0
    const late = waitedMs > durationMs(goal.spec.rollout.progressDeadline) || (stalled && current)
    return late ? new Stalled(code, message) : new Waiting('WaitingForArtifact', message, { afterMs: 1000 })
  }
}
