import { z } from 'zod'
import { defineKind, type ObjectOf } from './kind.ts'
import { commitId, conditions, name, rule, sha256Digest, time, validations } from './meta.ts'

const spec = z
  .object({
    pipelineRef: name,
    commit: commitId,
    digest: sha256Digest.describe('SHA-256 of the blob.'),
    sizeBytes: z.int().min(1).meta({ format: 'int64' }),
    key: z.string().min(1).max(1024).describe('The blob’s key in every bucket; the descriptor is at key + ".torrent".'),
    partSizeBytes: z.int().min(1).meta({ format: 'int64' }),
    checksum: z.string().max(256).describe('The store’s composite SHA-256 at partSizeBytes, as base64-N.'),
    descriptor: z.object({ infoHash: z.string().regex(/^[0-9a-f]{40}$/), digest: sha256Digest }),
    regions: z.array(name).max(50).describe('The regions it must be in to be deployable.'),
    provenance: z
      .string()
      .max(65_536)
      .optional()
      .describe('in-toto statement, SLSA v1, in a DSSE envelope signed by the hub.'),
  })
  .meta(validations(rule('self == oldSelf', 'an artifact is immutable')))

export const replicaState = z.enum(['Pending', 'Copying', 'Replicated', 'Missing', 'Corrupt', 'Unknown'])
export type ReplicaState = z.infer<typeof replicaState>

const replica = z.object({
  region: name,
  state: replicaState,
  copiedBytes: z.int().optional().meta({ format: 'int64' }),
  checkedAt: time.optional(),
  message: z.string().max(1024).optional(),
})

const status = z.object({
  observedGeneration: z.int().optional(),
  replicated: z.string().optional().describe('Regions that have it, as 3/5.'),
  replicas: z
    .array(replica)
    .max(50)
    .optional()
    .meta({ 'x-kubernetes-list-type': 'map', 'x-kubernetes-list-map-keys': ['region'] }),
  conditions: conditions.optional(),
})

/** The files of a successful build; immutable, named as its BuildJob. */
export const Artifact = defineKind({
  kind: 'Artifact',
  plural: 'artifacts',
  shortNames: ['art'],
  columns: [
    { name: 'Pipeline', type: 'string', jsonPath: '.spec.pipelineRef' },
    { name: 'Commit', type: 'string', jsonPath: '.spec.commit', priority: 1 },
    { name: 'Size', type: 'integer', jsonPath: '.spec.sizeBytes' },
    { name: 'Replicated', type: 'string', jsonPath: '.status.replicated' },
    { name: 'Deployable', type: 'string', jsonPath: ".status.conditions[?(@.type=='Deployable')].status" },
    { name: 'Message', type: 'string', jsonPath: ".status.conditions[?(@.type=='Deployable')].message", priority: 1 },
  ],
  selectableFields: ['.spec.pipelineRef', '.spec.commit', '.spec.digest'],
  spec,
  status,
})
export type Artifact = ObjectOf<typeof Artifact>
