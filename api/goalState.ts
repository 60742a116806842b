import { z } from 'zod'
import { activation } from './activation.ts'
import { defineKind, type ObjectOf } from './kind.ts'
import { conditions, duration, intOrPercent, name, nameRef, rule, time, validations } from './meta.ts'

/** Which machines: all of these labels, with exactly these values. */
export const machineSelector = z.object({
  matchLabels: z.record(z.string().max(317), z.string().max(63)).default({}),
})
export type MachineSelector = z.infer<typeof machineSelector>

/** One step of a rollout: so many machines, or such a share of them, in each of these regions. */
const wave = z
  .object({
    regions: z.array(name).min(1).max(50),
    machines: z.int().min(1).optional(),
    percent: z.int().min(1).max(100).optional(),
    soak: duration.default('0s'),
    approval: z.boolean().optional().describe('It begins when someone who may approve has approved it.'),
  })
  .meta(validations(rule('has(self.machines) != has(self.percent)', 'a wave has either machines or percent')))
export type Wave = z.infer<typeof wave>

/** Nothing changes from each time of `cron` on, for so long; going back may always. */
const freeze = z.object({
  cron: z.string().min(9).max(100).describe('Minute, hour, day of the month, month, day of the week.'),
  duration,
  timeZone: z.string().max(64).default('UTC').describe('A name of the IANA database.'),
})
export type Freeze = z.infer<typeof freeze>

const rollout = z.object({
  waves: z
    .array(wave)
    .min(1)
    .max(32)
    .optional()
    .describe('Default: one machine of the first region, then one region after the other, by name.'),
  maxUnavailable: intOrPercent
    .meta(validations(rule('self != 0 && self != "0%"', 'with no machine down at once none can be updated')))
    .default('33%')
    .describe('Of the selected machines of a region, at once.'),
  failureThreshold: intOrPercent
    .default('2%')
    .describe('Rounded up; until 50 machines are updated, any failure halts.'),
  progressDeadline: duration.default('15m'),
  onFailure: z.enum(['Rollback', 'Pause']).default('Rollback'),
  check: z
    .object({ url: z.url({ protocol: /^https?$/ }).max(2048) })
    .optional()
    .describe(
      'Asked while a wave soaks. 200 and {"ok": true}: all is well; {"ok": false, "message": …}: the rollout fails; anything else: it waits.',
    ),
  freeze: z.array(freeze).max(16).optional(),
})
export type Rollout = z.infer<typeof rollout>

const spec = z.object({
  artifactRef: nameRef,
  place: z.string().min(1).max(253).optional().describe('What a machine holds one of. Default: namespace/name.'),
  machineSelector: machineSelector.prefault({}),
  activation,
  rollout: rollout.prefault({}),
})

/** Machines of one region, by what they report of this goal. */
export const machineCounts = z.object({
  desired: z.int().default(0).describe('Selected machines.'),
  fetched: z.int().default(0).describe('Have the release on disk.'),
  updated: z.int().default(0).describe('Run the effective template.'),
  healthy: z.int().default(0).describe('Updated, and healthy for minHealthy.'),
  failed: z.int().default(0).describe('Could not activate it.'),
  unreachable: z.int().default(0).describe('Not heard of.'),
})
export type MachineCounts = z.infer<typeof machineCounts>

export const machineFailure = z.object({
  machine: z.string(),
  region: z.string().optional(),
  reason: z.string(),
  message: z.string().max(1024),
})
export type MachineFailure = z.infer<typeof machineFailure>

const status = machineCounts.partial().extend({
  observedGeneration: z.int().optional(),
  effective: z
    .object({ template: z.string(), revision: z.int(), artifact: z.string(), since: time })
    .optional()
    .describe('What the machines are told to run.'),
  lastGood: z
    .object({ template: z.string(), revision: z.int(), artifact: z.string() })
    .optional()
    .describe('The last template that worked everywhere.'),
  goodBefore: z
    .object({ template: z.string(), revision: z.int(), artifact: z.string() })
    .optional()
    .describe('The one that worked before it: kept on the machines too, for undo.'),
  rollback: z.boolean().optional().describe('The effective template is one gone back to.'),
  waveIndex: z.int().optional().describe('Waves complete so far; the current one’s index.'),
  wave: z.string().optional().describe('Current wave, as 2/4.'),
  regionsInRollout: z.array(z.string()).max(50).optional().describe('What "*" meant when the rollout started.'),
  waveOpen: z.boolean().optional().describe('The current wave has begun.'),
  soakedMs: z.int().optional().describe('How long the current wave has soaked; absent until it is complete.'),
  waveSince: time.optional().describe('When the wave before the current one was complete.'),
  standsSince: time
    .optional()
    .describe('The rollout stands still since then: for people, a freeze, its check, or silence.'),
  stoodMs: z.int().optional().describe('How long the current wave stood still before that.'),
  waitedMs: z.int().optional().describe('How long nothing came forward, though it could.'),
  regions: z.array(machineCounts.extend({ name })).max(50).optional(),
  failures: z.array(machineFailure).max(10).optional(),
  history: z
    .array(
      z.object({
        revision: z.int(),
        template: z.string(),
        artifact: z.string(),
        outcome: z.enum(['InProgress', 'Succeeded', 'Failed', 'Superseded', 'Undone']),
        at: time,
      }),
    )
    .max(10)
    .optional(),
  conditions: conditions.optional(),
})

/** Which artifact, with which activation, a set of machines should run, and how to get there. */
export const GoalState = defineKind({
  kind: 'GoalState',
  plural: 'goalstates',
  shortNames: ['goal'],
  columns: [
    { name: 'Artifact', type: 'string', jsonPath: '.status.effective.artifact' },
    { name: 'Wave', type: 'string', jsonPath: '.status.wave' },
    { name: 'Desired', type: 'integer', jsonPath: '.status.desired' },
    { name: 'Fetched', type: 'integer', jsonPath: '.status.fetched' },
    { name: 'Updated', type: 'integer', jsonPath: '.status.updated' },
    { name: 'Healthy', type: 'integer', jsonPath: '.status.healthy' },
    { name: 'Failed', type: 'integer', jsonPath: '.status.failed' },
    { name: 'Ready', type: 'string', jsonPath: ".status.conditions[?(@.type=='Ready')].status" },
    { name: 'Message', type: 'string', jsonPath: ".status.conditions[?(@.type=='Ready')].message", priority: 1 },
  ],
  selectableFields: ['.spec.artifactRef.name'],
  spec,
  status,
})
export type GoalState = ObjectOf<typeof GoalState>

/** What someone said of a rollout; not in a spec, so that no Git sync undoes it. */
const word = z.object({ by: z.string().max(512), at: time, why: z.string().max(1024) })
export const verbs = ['Hold', 'Release', 'Pause', 'Resume', 'Approve', 'Promote'] as const
const wordOnWave = word.extend({ wave: z.int().min(1).describe('Counted from 1.') })

const revisionSpec = z
  .object({
    goalRef: name,
    revision: z.int().min(1),
    hash: z.string().describe('Hash of the template.'),
    template: z.object({ artifactRef: nameRef, activation }),
  })
  .meta(validations(rule('self == oldSelf', 'a revision is immutable')))

/** One template a GoalState has had; history and rollback stand on it. */
export const GoalStateRevision = defineKind({
  kind: 'GoalStateRevision',
  plural: 'goalstaterevisions',
  shortNames: ['goalrev'],
  columns: [
    { name: 'Goal', type: 'string', jsonPath: '.spec.goalRef' },
    { name: 'Revision', type: 'integer', jsonPath: '.spec.revision' },
    { name: 'Artifact', type: 'string', jsonPath: '.spec.template.artifactRef.name' },
    { name: 'Held', type: 'string', jsonPath: '.status.hold.why' },
  ],
  selectableFields: ['.spec.goalRef', '.spec.hash'],
  spec: revisionSpec,
  status: z.object({
    hold: word
      .extend({
        to: z.int().min(1).optional().describe('The revision to go back to; by default the last that worked.'),
      })
      .optional()
      .describe('A held template is not rolled out again until a person removes this.'),
    pause: word.optional().describe('No machine is changed while this stands.'),
    approvals: z.array(wordOnWave).max(32).optional(),
    promotions: z.array(wordOnWave).max(32).optional().describe('Waves whose soak is skipped.'),
    log: z
      .array(word.extend({ verb: z.enum(verbs), wave: z.int().optional(), to: z.int().optional() }))
      .max(500)
      .optional()
      .describe('All that was ever said of this revision; entries are only added.'),
  }),
})
export type GoalStateRevision = ObjectOf<typeof GoalStateRevision>
