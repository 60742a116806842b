import { z } from 'zod'
import { defineKind, type ObjectOf } from './kind.ts'
import { commitId, conditions, name, nameRef, rule, time, validations } from './meta.ts'

const unchanging = (field: string) => rule(`self.${field} == oldSelf.${field}`, `${field} is immutable`)

const spec = z
  .object({
    pipelineRef: name,
    commit: commitId,
    ref: z.string().min(1).max(512),
    priority: z.int().min(-1000).max(1000).default(0),
    cancel: z.boolean().default(false),
  })
  .meta(
    validations(
      unchanging('pipelineRef'),
      unchanging('commit'),
      unchanging('ref'),
      rule('!oldSelf.cancel || self.cancel', 'a cancelled job stays cancelled; rebuild instead'),
    ),
  )

export const buildJobPhase = z.enum(['Queued', 'Running', 'Replicating', 'Succeeded', 'Failed', 'Cancelled'])
export type BuildJobPhase = z.infer<typeof buildJobPhase>

/** Those that a job never leaves. */
export const finalPhases: readonly BuildJobPhase[] = ['Succeeded', 'Failed', 'Cancelled']

const status = z.object({
  observedGeneration: z.int().optional(),
  phase: buildJobPhase.optional(),
  queuePosition: z.int().optional(),
  worker: z.string().optional(),
  attempt: z.int().optional(),
  artifactRef: nameRef.optional(),
  replicated: z.string().optional().describe('Regions that have the artifact, as 3/5.'),
  queuedAt: time.optional(),
  startedAt: time.optional(),
  finishedAt: time.optional(),
  message: z.string().max(4096).optional(),
  conditions: conditions.optional(),
})

/** One commit to be built. */
export const BuildJob = defineKind({
  kind: 'BuildJob',
  plural: 'buildjobs',
  shortNames: ['bj'],
  columns: [
    { name: 'Phase', type: 'string', jsonPath: '.status.phase' },
    { name: 'Commit', type: 'string', jsonPath: '.spec.commit', priority: 1 },
    { name: 'Position', type: 'integer', jsonPath: '.status.queuePosition' },
    { name: 'Worker', type: 'string', jsonPath: '.status.worker' },
    { name: 'Artifact', type: 'string', jsonPath: '.status.artifactRef.name' },
    { name: 'Replicated', type: 'string', jsonPath: '.status.replicated' },
    { name: 'Message', type: 'string', jsonPath: '.status.message', priority: 1 },
  ],
  selectableFields: ['.spec.pipelineRef', '.spec.commit', '.status.phase'],
  spec,
  status,
})
export type BuildJob = ObjectOf<typeof BuildJob>
