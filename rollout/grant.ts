import { resolveCount } from '../api/meta.ts'
import { allowedFailures } from './engine.ts'
import type { GoalPayload } from './envelope.ts'
import { targetCount } from './plan.ts'
import type { Tally } from './tally.ts'

type RegionCounts = Pick<Tally, 'desired' | 'updated' | 'failed' | 'unavailable' | 'updatedOrGranted' | 'manySilent'>
type Rules = Pick<GoalPayload, 'halted' | 'target' | 'maxUnavailable' | 'failureThreshold'> & {
  /** The template is one gone back to, or every wave was complete: no failure holds up the others. */
  trusted: boolean
}

/**
 * How many machines that have the release and wait may activate it now: of all, and of those that serve. Updating one that
 * is down anyway costs no budget. `Halts`: the region goes no further by itself.
 */
export function roomOf(goal: Rules, counts: RegionCounts): { all: number; serving: number } | 'Halts' {
  const { desired, updated, failed, unavailable, updatedOrGranted, manySilent } = counts
  const none = { all: 0, serving: 0 }
  if (goal.halted) return none
  if (!goal.trusted && failed > allowedFailures(goal.failureThreshold, { updated, desired })) return 'Halts'
  if (!goal.trusted && manySilent) return none
  const all = Math.max(0, targetCount(goal.target, desired) - updatedOrGranted)
  const budget = Math.max(1, resolveCount(goal.maxUnavailable, desired))
  return { all, serving: Math.min(all, Math.max(0, budget - unavailable)) }
}

/** Whether one more machine may; `serves`: it runs something, and is not counted as unavailable yet. */
export function mayActivate(
  goal: Rules,
  counts: RegionCounts,
  { serves }: { serves: boolean },
): 'Yes' | 'No' | 'Halts' {
  const room = roomOf(goal, counts)
  if (room === 'Halts') return 'Halts'
  return (serves ? room.serving : room.all) > 0 ? 'Yes' : 'No'
}
