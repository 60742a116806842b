import { z } from 'zod'
import { machineCounts, machineFailure } from './goalState.ts'
import { defineKind, type ObjectOf } from './kind.ts'
import { conditions, name } from './meta.ts'

const spec = z.object({
  envelope: z.string().max(262_144).describe('What the hub says, as a signed DSSE envelope. Only this is acted on.'),
  region: name,
  goal: z.object({ namespace: name, name, uid: z.string() }),
  artifact: z.string(),
  revision: z.int(),
  sequence: z.int().meta({ format: 'int64' }),
  target: z.string().describe('As 1, 25% or 0.'),
  halted: z.boolean(),
})

const status = machineCounts.partial().extend({
  observedSequence: z.int().optional().meta({ format: 'int64' }),
  observedRevision: z.int().optional(),
  reportedAt: z.string().optional(),
  halted: z.boolean().optional().describe('The region halted by itself on its own threshold.'),
  failures: z.array(machineFailure).max(10).optional(),
  conditions: conditions.optional(),
})

/** What one region is told of a GoalState; in the hub's namespace shoal-region-<name>, mirrored by the region. */
export const RegionalGoalState = defineKind({
  kind: 'RegionalGoalState',
  plural: 'regionalgoalstates',
  shortNames: ['rgoal'],
  columns: [
    { name: 'Region', type: 'string', jsonPath: '.spec.region' },
    { name: 'Artifact', type: 'string', jsonPath: '.spec.artifact' },
    { name: 'Target', type: 'string', jsonPath: '.spec.target' },
    { name: 'Desired', type: 'integer', jsonPath: '.status.desired' },
    { name: 'Fetched', type: 'integer', jsonPath: '.status.fetched' },
    { name: 'Updated', type: 'integer', jsonPath: '.status.updated' },
    { name: 'Healthy', type: 'integer', jsonPath: '.status.healthy' },
    { name: 'Failed', type: 'integer', jsonPath: '.status.failed' },
  ],
  spec,
  status,
})
export type RegionalGoalState = ObjectOf<typeof RegionalGoalState>
