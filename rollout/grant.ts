import { resolveCount } from '../api/meta.ts'
import { allowedFailures } from './engine.ts'
import type { GoalPayload } from './envelope.ts'
import { targetCount } from './plan.ts'

/** A region's machines, by what they reported of a goal. */
export interface RegionCounts {
  desired: number
  updated: number
  failed: number
  /** Machines that an open grant, whatever for, or a failed activation keeps from serving. */
  unavailable: number
  /** Machines that run the template, or may begin to. */
  updatedOrGranted: number
}

/**
 * Whether a machine that has the release and waits may activate it now. `serves`: it runs something, and is not counted
 * as unavailable yet: updating one that is down anyway costs no budget. `Halts`: the region goes no further by itself.
 */
export function mayActivate(
  goal: Pick<GoalPayload, 'halted' | 'rollback' | 'target' | 'maxUnavailable' | 'failureThreshold'>,
  { desired, updated, failed, unavailable, updatedOrGranted }: RegionCounts,
  { serves }: { serves: boolean },
): 'Yes' | 'No' | 'Halts' {
  if (goal.halted) return 'No'
  if (!goal.rollback && failed > allowedFailures(goal.failureThreshold, { updated, desired })) return 'Halts'
  if (updatedOrGranted >= targetCount(goal.target, desired)) return 'No'
  const budget = Math.max(1, resolveCount(goal.maxUnavailable, desired))
  return serves && unavailable >= budget ? 'No' : 'Yes'
}
