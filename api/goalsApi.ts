/**
 * What the hub's page asks of rollouts, over HTTPS, with the caller's Kubernetes token: GET /v1/goals/<namespace>, and
 * POST /v1/goals/<namespace>/<name>/deploy, which answers with `{}` once the API server took it.
 */
import { z } from 'zod'

const goalSummary = z.object({
  name: z.string(),
  artifact: z.string().describe('What its spec asks for.'),
  effective: z.string().optional().describe('What machines are told to run.'),
  wave: z.string().optional(),
  desired: z.int(),
  healthy: z.int(),
  failed: z.int(),
  reason: z.string().optional().describe('Of the condition that holds: Stalled, Reconciling or Ready.'),
  message: z.string().optional(),
})
export type GoalSummary = z.infer<typeof goalSummary>

export const goalsAnswer = z.object({
  goals: z.array(goalSummary),
  artifacts: z.array(z.object({ name: z.string(), deployable: z.boolean() })).describe('The newest 100, newest first.'),
})
export type GoalsAnswer = z.infer<typeof goalsAnswer>

export const deployRequest = z.object({ artifact: z.string().min(1).max(253) })
