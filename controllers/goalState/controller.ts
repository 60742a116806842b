/**
 * controllers/goalState/: moves machines to what a GoalState says, wave by wave, and back when that fails. All a hub
 * needs to go on where another one died is in the GoalState's status, its revisions and the RegionalGoalStates.
 *
 *   artifact → effective template → revision → regional goals → reports → engine → next wave, or hold and go back
 */
import { isDeepStrictEqual } from 'node:util'
import type { Artifact } from '../../api/artifact.ts'
import { type ShoalError, Stalled, Waiting } from '../../api/errors.ts'
import { GoalState, type Wave } from '../../api/goalState.ts'
import type { RegionalGoalState } from '../../api/regionalGoalState.ts'
import { advance, enterWave, openWave, type Progress, type Verdict } from '../../rollout/engine.ts'
import { covers, rollbackWaves, targetOf, wavesOf } from '../../rollout/plan.ts'
import { type Clock, systemClock } from '../../runtime/clock.ts'
import type { Cluster } from '../../runtime/cluster.ts'
import { Controller, type ReconcileResult } from '../../runtime/controller.ts'
import type { EventRecorder } from '../../runtime/events.ts'
import type { Logger } from '../../runtime/log.ts'
import type { Metrics } from '../../runtime/metrics.ts'
import type { Reflector } from '../../runtime/reflector.ts'
import type { RegionDirectory } from '../region/directory.ts'
import { Checks } from './checks.ts'
import { addFinalizer, letGo } from './finalizer.ts'
import { gatesOf } from './gates.ts'
import type { RegionalGoals } from './regional.ts'
import { ReplicaGate } from './replicaGate.ts'
import type { Hashed, Hold, Revisions } from './revisions.ts'
import { RolloutStart } from './start.ts'
import { endHistory, type GoalStatus, progressOf, reportsOf, statusOf } from './status.ts'
import { Templates } from './templates.ts'
import { WaveTimes } from './waveTimes.ts'

export interface GoalStateControllerOptions {
  cluster: Cluster
  goals: Reflector<GoalState>
  artifacts: Reflector<Artifact>
  regionals: Reflector<RegionalGoalState>
  revisions: Revisions
  regionalGoals: RegionalGoals
  regions: RegionDirectory
  /** For pipelines that replicate on deploy. */
  requestReplication: (namespace: string, artifact: string) => Promise<void>
  /** Has a region look at its copy now. */
  checkReplica: (namespace: string, artifact: string, region: string) => Promise<void>
  events: EventRecorder
  log: Logger
  metrics: Metrics
  clock?: Clock
  /** Between two steps of a rollout in which nothing is reported. Default: 1 s. */
  tickMs?: number
  /** Between two questions to a goal's check. Default: 5 s. */
  checkEveryMs?: number
}

const fieldManager = 'shoal-goalstate'
/** A longer time between two steps is an outage, and not soak. */
const longestStepMs = 10_000
const idleMs = 30_000

/** What regions are told of a wave, beside what the goal says itself. */
interface WaveOrder {
  revision: number
  wanted: Hashed
  waves: Wave[]
  progress: Progress
  halted: boolean
}

/** Reconciles GoalStates. Runs on the leader. */
export class GoalStateController {
  readonly #options: GoalStateControllerOptions
  readonly #clock: Clock
  readonly #controller: Controller
  readonly #replicas: ReplicaGate
  readonly #checks: Checks
  readonly #templates: Templates
  readonly #waveTimes: WaveTimes
  readonly #start: RolloutStart
  /** When each goal's engine was last stepped, on this process' monotonic clock. */
  readonly #steppedAt = new Map<string, number>()

  constructor(options: GoalStateControllerOptions) {
    this.#options = options
    this.#clock = options.clock ?? systemClock
    this.#replicas = new ReplicaGate(options.checkReplica)
    this.#templates = new Templates(options)
    this.#waveTimes = new WaveTimes(options.metrics)
    this.#start = new RolloutStart({
      ...options,
      ...{ clock: this.#clock, replicas: this.#replicas, templates: this.#templates },
      write: (goal, status) => this.#write(goal, status),
    })
    this.#checks = new Checks({ clock: this.#clock, everyMs: options.checkEveryMs })
    this.#controller = new Controller({ ...options, name: 'goalstate', reconcile: (key) => this.#reconcile(key) })
    options.goals.onChange((key, goal, previous) => {
      if (!goal || goal.metadata.generation !== previous?.metadata.generation || goal.metadata.deletionTimestamp)
        this.#controller.enqueue(key)
    })
    options.regionals.onChange((_key, regional) => {
      if (regional) this.#controller.enqueue(`${regional.spec.goal.namespace}/${regional.spec.goal.name}`)
    })
    options.artifacts.onChange((_key, artifact) => {
      for (const { metadata, spec } of options.goals.list()) {
        const named = spec.artifactRef.name === artifact?.metadata.name
        if (named && metadata.namespace === artifact.metadata.namespace)
          this.#controller.enqueue(`${metadata.namespace}/${metadata.name}`)
      }
    })
  }

  /** A revision of the goal was held or released. */
  notify(key: string): void {
    this.#controller.enqueue(key)
  }

  async run(signal: AbortSignal): Promise<void> {
    this.#steppedAt.clear()
    await this.#controller.run(signal)
  }

  async #reconcile(key: string): Promise<ReconcileResult> {
    const goal = this.#options.goals.get(key)
    if (!goal) {
      this.#steppedAt.delete(key)
      return
    }
    const { cluster, regionalGoals } = this.#options
    if (goal.metadata.deletionTimestamp) {
      this.#replicas.forget(goal.metadata.uid ?? '')
      this.#checks.forget(goal.metadata.namespace ?? '', goal.metadata.name)
      return letGo(cluster, regionalGoals, goal)
    }
    await addFinalizer(cluster, goal)
    // A copy: each step sees what the one before has found.
    let status: GoalStatus = { ...goal.status }
    let problem: ShoalError | undefined
    // As this reconcile acts on it: a hold put below is answered by going back in the next.
    const held = this.#held(goal)
    try {
      status = await this.#start.makeEffective(goal, status)
    } catch (error) {
      // What is effective goes on meanwhile.
      if (!(error instanceof Waiting || error instanceof Stalled)) throw error
      problem = error
    }
    let verdict: Verdict | undefined
    if (status.effective) {
      const step = await this.#step(goal, status)
      status = step.status
      verdict = step.verdict
    }
    await this.#write(
      goal,
      statusOf(goal, {
        status,
        verdict,
        problem,
        held,
        regionals: this.#options.regionalGoals.of(goal),
        nowMs: this.#clock.now(),
      }),
    )
    // The hold is put; going back, if there is something to go back to, is the next reconcile's.
    if (verdict?.is === 'Failed' && !status.rollback) return { afterMs: 100 }
    const busy = problem instanceof Waiting || (verdict !== undefined && verdict.is !== 'Complete')
    return { afterMs: busy ? (this.#options.tickMs ?? 1000) : idleMs }
  }

  #held(goal: GoalState): Hold | undefined {
    const wanted = this.#templates.wanted(goal)
    return wanted && this.#options.revisions.holdOf(goal, wanted.hash)
  }

  /** Tells the regions what the current wave wants, and takes the next step when their reports allow it. */
  async #step(goal: GoalState, before: GoalStatus): Promise<{ status: GoalStatus; verdict: Verdict | undefined }> {
    const key = `${goal.metadata.namespace}/${goal.metadata.name}`
    const { regionalGoals } = this.#options
    const effective = before.effective
    const wanted = effective && this.#templates.of(goal, effective.template)
    if (!effective || !wanted) return { status: before, verdict: undefined }
    const regions = before.regionsInRollout ?? []
    const waves = before.rollback ? rollbackWaves : wavesOf(goal.spec.rollout, regions)
    const words = this.#options.revisions.wordsOn(goal, effective.revision)
    const rollout = { ...goal.spec.rollout, waves }
    const standing = progressOf(before, waves.length)
    const view = { goal, status: before, words, checks: this.#checks, nowMs: this.#clock.now() }
    const gates = gatesOf(view, standing)
    const progress = enterWave(rollout, standing, gates)
    const held = !before.rollback && this.#options.revisions.holdOf(goal, effective.template) !== undefined
    const halted = held || gates.stopped !== undefined
    const { revision } = effective
    const unseen = await this.#tellRegions(goal, before, { revision, wanted, waves, progress, halted })
    const now = this.#clock.monotonic()
    const sinceLast = now - (this.#steppedAt.get(key) ?? now)
    this.#steppedAt.set(key, now)
    const reports = reportsOf(effective.revision, regions, regionalGoals.of(goal))
    const elapsedMs = sinceLast > longestStepMs ? 0 : sinceLast
    const step = advance(rollout, progress, { reports, unseen, elapsedMs, gates })
    const status: GoalStatus = {
      ...before,
      ...this.#waveTimes.step(before, step, this.#clock.now()),
      waveIndex: step.progress.waveIndex,
      wave: `${Math.min(step.progress.waveIndex + 1, waves.length)}/${waves.length}`,
      waveOpen: step.progress.open,
      soakedMs: step.progress.soakedMs && Math.round(step.progress.soakedMs),
      waitedMs: Math.round(step.progress.waitedMs),
    }
    if (step.verdict.is === 'Complete' && !held) return { status: this.#complete(goal, status), verdict: step.verdict }
    if (step.verdict.is === 'Failed') await this.#fail(goal, status, step.verdict.message)
    return { status, verdict: step.verdict }
  }

  /** @returns the regions of the current wave that have not looked at their copy yet, or lack it. */
  async #tellRegions(goal: GoalState, status: GoalStatus, order: WaveOrder): Promise<string[]> {
    const { namespace = '', name, uid = '' } = goal.metadata
    const { maxUnavailable, failureThreshold } = goal.spec.rollout
    const { revision, wanted, waves, progress, halted } = order
    const previous = this.#templates.previous(goal, status)
    const wave = waves[progress.waveIndex]
    const unseen: string[] = []
    for (const region of status.regionsInRollout ?? []) {
      const mayRaise = await this.#mayRaise(goal, status, region)
      if (!mayRaise && wave && covers(wave, region)) unseen.push(region)
      await this.#options.regionalGoals.tell(goal, {
        ...{ region, namespace, name, uid, place: goal.spec.place ?? `${namespace}/${name}` },
        selector: goal.spec.machineSelector,
        template: wanted.template,
        templateHash: wanted.hash,
        ...(previous && { previous }),
        target: targetOf(waves, mayRaise ? openWave(progress) : -1, region),
        ...{ halted, rollback: status.rollback ?? false, maxUnavailable, failureThreshold, revision },
      })
    }
    return unseen
  }

  /**
   * Whether a region's target may be more than zero. It stays so: halt and rollback need no bucket. All regions look at
   * their copies when the rollout begins, while machines fetch.
   */
  async #mayRaise(goal: GoalState, { effective, rollback }: GoalStatus, region: string): Promise<boolean> {
    const artifact = effective && this.#templates.artifact(goal, effective.artifact)
    if (!artifact || rollback) return true
    const told = this.#options.regionalGoals.in(goal, region)?.spec
    if (told?.revision === effective.revision && told.target !== '0') return true
    return this.#replicas.passes(goal.metadata.uid ?? '', effective.revision, { artifact, region })
  }

  #complete(goal: GoalState, status: GoalStatus): GoalStatus {
    const { effective } = status
    if (!effective || status.lastGood?.revision === effective.revision) return status
    const note = `${effective.artifact} runs everywhere as revision ${effective.revision}`
    this.#options.events.record(goal, 'Normal', 'RolledOut', note)
    this.#waveTimes.ended('Succeeded')
    const { template, revision, artifact } = effective
    const now = new Date(this.#clock.now()).toISOString()
    const before = status.lastGood?.template === template ? status.goodBefore : status.lastGood
    return {
      ...status,
      lastGood: { template, revision, artifact },
      ...(before && before.template !== template && { goodBefore: before }),
      history: endHistory(status, revision, 'Succeeded', now),
    }
  }

  /** Holds the template, so that it is not rolled out again; the next reconcile goes back, or leaves it halted. */
  async #fail(goal: GoalState, status: GoalStatus, why: string): Promise<void> {
    const { effective } = status
    if (!effective || status.rollback) return
    const { revisions, events, log } = this.#options
    if (revisions.holdOf(goal, effective.template) !== undefined) return
    const now = new Date(this.#clock.now()).toISOString()
    await revisions.putHold(goal, effective.template, why, now)
    status.history = endHistory(status, effective.revision, 'Failed', now)
    this.#waveTimes.ended('Failed')
    events.record(goal, 'Warning', 'RolloutFailed', `${effective.artifact}: ${why}`)
    log.info({ goal: goal.metadata.name, revision: effective.revision, why }, 'rollout failed')
  }

  async #write(goal: GoalState, status: GoalStatus): Promise<void> {
    if (isDeepStrictEqual(goal.status, status)) return
    const object = { metadata: { name: goal.metadata.name, namespace: goal.metadata.namespace }, status }
    const written = await this.#options.cluster.apply(GoalState, object, { fieldManager, subresource: 'status' })
    this.#options.goals.remember(written)
    goal.status = GoalState.parse(written).status
  }
}
