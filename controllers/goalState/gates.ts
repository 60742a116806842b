import type { GoalState, GoalStateRevision } from '../../api/goalState.ts'
import { durationMs } from '../../api/meta.ts'
import type { Gates, Progress } from '../../rollout/engine.ts'
import { freezeProblem, frozenUntil } from '../../rollout/freeze.ts'
import { covers, wavesOf } from '../../rollout/plan.ts'
import type { Checks } from './checks.ts'
import type { GoalStatus } from './status.ts'

interface GatesOptions {
  goal: GoalState
  status: GoalStatus
  /** What people said of the effective revision. */
  words: NonNullable<GoalStateRevision['status']>
  checks: Checks
  nowMs: number
}

/** What holds a rollout up besides its machines: people, the calendar, and the goal's check. Going back is held up by people alone. */
export function gatesOf({ goal, status, words, checks, nowMs }: GatesOptions, progress: Progress): Gates {
  const { pause, approvals = [], promotions = [] } = words
  const indexes = (said: { wave: number }[]) => new Set(said.map(({ wave }) => wave - 1))
  const people = { approved: indexes(approvals), promoted: indexes(promotions) }
  if (pause) return { ...people, stopped: { is: 'Paused', message: `paused by ${pause.by}: ${pause.why}` } }
  if (status.rollback) return people
  const freezes = goal.spec.rollout.freeze ?? []
  const unreadable = freezes.map(freezeProblem).find((problem) => problem !== undefined)
  if (unreadable !== undefined) return { ...people, stopped: { is: 'Frozen', message: unreadable } }
  const endMs = frozenUntil(freezes, nowMs)
  if (endMs !== undefined) {
    const message = `nothing changes before ${new Date(endMs).toISOString()}, by spec.rollout.freeze`
    return { ...people, stopped: { is: 'Frozen', message } }
  }
  return { ...people, check: checkOf({ goal, status, checks }, progress) }
}

function checkOf(
  { goal, status, checks }: Pick<GatesOptions, 'goal' | 'status' | 'checks'>,
  { waveIndex, open }: Progress,
): Gates['check'] {
  const { check } = goal.spec.rollout
  const wave = wavesOf(goal.spec.rollout, status.regionsInRollout ?? [])[waveIndex]
  if (!check || !status.effective || !wave || !open || durationMs(wave.soak) === 0) return undefined
  const { namespace = '', name } = goal.metadata
  const { artifact, revision } = status.effective
  const regions = (status.regionsInRollout ?? []).filter((region) => covers(wave, region))
  return checks.verdict(
    regions.map((region) => ({
      ...{ url: check.url, namespace, goal: name, artifact, revision, region, wave: waveIndex + 1 },
    })),
  )
}
