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

const percent = z.int().describe('Rounded down.')

/** How the release comes to the machines of a region: as the tracker sees it, and as they said afterwards. */
const artifactSpread = z.object({
  complete: z.int().optional().describe('Machines that have all of it.'),
  fetching: z.int().optional(),
  fewestCopies: z.int().optional().describe('Of the piece that the fewest machines have.'),
  missingPieces: z.int().optional().describe('Pieces that no machine has.'),
  had: z
    .object({ p50: percent, p90: percent, last: percent })
    .optional()
    .describe('Percent of it that half of the machines have at least; nine of ten; all.'),
  seconds: z
    .object({ machines: z.int(), p50: z.number(), p90: z.number(), last: z.number() })
    .optional()
    .describe('How long the machines that have it took, from its descriptor to the last byte verified.'),
})
export type ArtifactSpread = z.infer<typeof artifactSpread>

const status = machineCounts.partial().extend({
  observedSequence: z.int().optional().meta({ format: 'int64' }),
  highestSequence: z
    .int()
    .optional()
    .meta({ format: 'int64' })
    .describe('That a machine has, where it is more than observedSequence: of before a restore.'),
  observedRevision: z.int().optional(),
  reportedAt: z.string().optional(),
  halted: z.boolean().optional().describe('The region halted by itself on its own threshold.'),
  manySilent: z
    .boolean()
    .optional()
    .describe('More than one machine in twenty fell silent at once: nothing more begins, unless it goes back.'),
  failures: z.array(machineFailure).max(10).optional(),
  fetch: artifactSpread.optional(),
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
