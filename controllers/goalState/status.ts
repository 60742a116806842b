import { type ShoalError, Stalled } from '../../api/errors.ts'
import type { GoalState, MachineCounts } from '../../api/goalState.ts'
import type { RegionalGoalState } from '../../api/regionalGoalState.ts'
import { engineName } from '../../rollout/effective.ts'
import type { Progress, RegionReport, Verdict } from '../../rollout/engine.ts'
import { type Standing, standingConditions } from '../../runtime/conditions.ts'
import type { Hold } from './revisions.ts'

export type GoalStatus = NonNullable<GoalState['status']>
type History = NonNullable<GoalStatus['history']>
type Effective = NonNullable<GoalStatus['effective']>

const countNames = ['desired', 'fetched', 'updated', 'healthy', 'failed', 'unreachable'] as const
const keptRevisions = 10
const keptFailures = 10

/** What the regions of a rollout say of this revision; a report of an older one counts for nothing. */
export function reportsOf(revision: number, regions: string[], regionals: RegionalGoalState[]): RegionReport[] {
  return regions.map((region) => {
    const regional = regionals.find(({ spec }) => spec.region === region)
    const status = regional?.status
    const current = status?.observedRevision === revision
    return {
      region,
      counts: current ? countsOf(status) : undefined,
      fresh: current && (status.observedSequence ?? 0) >= (regional?.spec.sequence ?? Number.POSITIVE_INFINITY),
      halted: current && status.halted === true,
      manySilent: current && status.manySilent === true,
    }
  })
}

/** Where the rollout stands, by what its status says. */
export function progressOf(status: GoalStatus, waves: number): Progress {
  return {
    waveIndex: Math.min(status.waveIndex ?? 0, waves),
    open: status.waveOpen ?? false,
    soakedMs: status.soakedMs,
    waitedMs: status.waitedMs ?? 0,
    reached: (status.fetched ?? 0) + (status.healthy ?? 0),
  }
}

const countsOf = (status: { [Name in keyof MachineCounts]?: number | undefined }): MachineCounts =>
  Object.fromEntries(countNames.map((name) => [name, status[name] ?? 0])) as MachineCounts

/** Whether every wave of the revision is complete. */
export const isSettled = (goal: GoalState | undefined, revision: number): boolean =>
  goal?.status?.lastGood?.revision === revision

/** The status of a rollout that begins. */
export function startRollout(
  status: GoalStatus,
  rollout: { effective: Omit<Effective, 'since'>; rollback: boolean; regions: string[]; nowMs: number },
): GoalStatus {
  const { effective, rollback, regions, nowMs } = rollout
  const now = new Date(nowMs).toISOString()
  const { template, revision, artifact } = effective
  const left = status.effective?.revision
  const ended = (status.history ?? []).map((entry) => {
    // gone back from by a person's word; what failed has its outcome
    if (rollback && entry.revision === left && entry.outcome !== 'Failed')
      return { ...entry, outcome: 'Undone' as const, at: now }
    return entry.outcome === 'InProgress' ? { ...entry, outcome: 'Superseded' as const, at: now } : entry
  })
  return {
    ...status,
    effective: { ...effective, since: now },
    rollback,
    waveIndex: 0,
    waveOpen: false,
    waveSince: now,
    standsSince: undefined,
    stoodMs: 0,
    soakedMs: undefined,
    waitedMs: 0,
    regionsInRollout: regions,
    ...Object.fromEntries(countNames.map((name) => [name, 0])),
    regions: [],
    failures: rollback ? (status.failures ?? []) : [],
    history: [{ revision, template, artifact, outcome: 'InProgress' as const, at: now }, ...ended].slice(
      0,
      keptRevisions,
    ),
  }
}

type Outcome = History[number]['outcome']

export function endHistory(status: GoalStatus, revision: number, outcome: Outcome, at: string): History {
  return (status.history ?? []).map((entry) => (entry.revision === revision ? { ...entry, outcome, at } : entry))
}

interface View {
  status: GoalStatus
  verdict?: Verdict | undefined
  problem?: ShoalError | undefined
  /** Of the template the spec names. */
  held?: Hold | undefined
  regionals?: RegionalGoalState[]
  nowMs: number
}

/** The whole status: sums of what regions report, and the conditions. */
export function statusOf(goal: GoalState, view: View): GoalStatus {
  const { status, regionals } = view
  const generation = goal.metadata.generation
  const revision = status.effective?.revision
  const reports =
    regionals && revision !== undefined ? reportsOf(revision, status.regionsInRollout ?? [], regionals) : []
  const known = reports.flatMap(({ region, counts }) => (counts ? [{ name: region, ...counts }] : []))
  const failures = (regionals ?? [])
    .filter((regional) => regional.status?.observedRevision === revision)
    .flatMap(({ spec, status }) => (status?.failures ?? []).map((failure) => ({ ...failure, region: spec.region })))
  const total = (name: keyof MachineCounts) => known.reduce((sum, counts) => sum + counts[name], 0)
  const kept = Object.fromEntries(Object.entries(status).filter(([, value]) => value !== undefined))
  return {
    ...kept,
    ...(generation !== undefined && { observedGeneration: generation }),
    ...(regionals && { ...Object.fromEntries(countNames.map((name) => [name, total(name)])), regions: known }),
    ...(failures.length > 0 && { failures: failures.slice(0, keptFailures) }),
    conditions: standingConditions(goal.status?.conditions ?? [], standingOf(view), generation, view.nowMs),
  }
}

function standingOf({ status, verdict, problem, held }: View): Standing {
  if (problem)
    return {
      is: problem instanceof Stalled ? 'Stalled' : 'Reconciling',
      reason: problem.code,
      message: problem.message,
    }
  const artifact = status.effective?.artifact ?? 'nothing'
  const progress = verdict ? verdict.message : 'the rollout begins'
  if (held !== undefined) {
    const why = held.by === engineName ? held.why : `held by ${held.by}: ${held.why}`
    if (status.rollback && verdict?.is !== 'Complete')
      return { is: 'Reconciling', reason: 'RollingBack', message: `${why}; going back to ${artifact}: ${progress}` }
    const now = status.rollback ? `gone back to ${artifact}` : 'halted, there is nothing to go back to'
    return { is: 'Stalled', reason: held.by === engineName ? 'RolloutFailed' : 'Held', message: `${why}; ${now}` }
  }
  if (verdict?.is === 'Complete') return { is: 'Ready', reason: 'RolledOut', message: `${artifact} runs everywhere` }
  if (verdict?.is === 'Failed') return { is: 'Reconciling', reason: 'RolloutFailed', message: verdict.message }
  if (verdict?.is === 'Late') return { is: 'Stalled', reason: 'ProgressDeadlineExceeded', message: verdict.message }
  return { is: 'Reconciling', reason: verdict?.is ?? 'RollingOut', message: progress }
}
