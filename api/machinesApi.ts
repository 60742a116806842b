/**
 * What a region knows of each machine of a goal, to people: GET /v1/machines?namespace=&goal=, as JSON over HTTPS at the
 * region's fleet server. The caller's token is for the region's own API server, and may `get` the goal's RegionalGoalState
 * in the region's mirror namespace.
 */
import { z } from 'zod'
import { machineState } from './fleetApi.ts'
import { time } from './meta.ts'

/** As a query string. `continue` of the page before. */
export const machinesQuery = z.object({
  namespace: z.string().max(63),
  goal: z.string().max(253),
  state: machineState.optional(),
  silent: z.literal('true').optional().describe('Only those not heard for longer than the region allows.'),
  limit: z.coerce.number().int().min(1).max(1000).default(100),
  continue: z.string().max(253).optional(),
})

const machine = z.object({
  name: z.string(),
  state: machineState.describe('As it last said.'),
  revision: z.int().describe('That the state is about.'),
  running: z.string().optional().describe('The template that runs and is healthy.'),
  lastSeen: time.optional(),
  silent: z.boolean(),
  granted: z.boolean().describe('It may begin to activate, or has, and did not say how it ended.'),
  fetchSeconds: z.number().optional(),
  reason: z.string().optional(),
  message: z.string().optional(),
})
export type MachineRecord = z.infer<typeof machine>

/** By name. `continue` asks for the next page. */
export const machinePage = z.object({
  now: time.describe('Of the clock that the other times are of.'),
  items: z.array(machine),
  continue: z.string().optional(),
})
export type MachinePage = z.infer<typeof machinePage>
