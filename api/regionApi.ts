/**
 * What a region and the hub say to each other, as JSON over HTTPS: GET /v1/region/work and POST /v1/region/replicas.
 * The caller is the ServiceAccount `region` of namespace `shoal-region-<name>`, by its token (audience `shoal-hub`),
 * and speaks for that region only. Goals don't go this way: the region watches them in the hub's API server.
 */
import { z } from 'zod'
import { replicaState } from './artifact.ts'
import { sha256Digest } from './meta.ts'
import { Region } from './region.ts'

/** The hub's namespace of a region. */
export const regionNamespace = (region: string) => `shoal-region-${region}`
/** The namespace of a region's own API server that holds its mirrors. */
export const mirrorNamespace = (region: string) => `shoal-mirror-${region}`
/** Set on a region's copies of RegionalGoalStates, to the region's name. */
export const mirrorLabel = 'shoal.dev/mirror'
/** The ConfigMap in `shoal-region-<name>` whose data.envelope is the region's signed index. */
export const indexName = 'shoal-index'
/** The ConfigMap in the hub's namespace whose data.names are the names of all regions, with spaces between them. */
export const regionsName = 'shoal-regions'

const replicaWork = z.object({
  namespace: z.string(),
  name: z.string(),
  key: z.string(),
  sizeBytes: z.int(),
  partSizeBytes: z.int(),
  checksum: z.string(),
  digest: sha256Digest,
  descriptorDigest: sha256Digest,
  descriptorKey: z.string(),
  state: replicaState.describe('As the hub has it.'),
  task: z.enum(['Copy', 'Check', 'CheckAllBytes']).describe('Copy also checks all bytes after.'),
  source: z
    .object({ blobUrl: z.url(), descriptorUrl: z.url(), expiresAt: z.int() })
    .optional()
    .describe('Presigned reads of a bucket that has it; for Copy.'),
})
export type ReplicaWork = z.infer<typeof replicaWork>

export const workAnswer = z.object({
  region: z.object({ name: z.string(), cordoned: z.boolean(), spec: Region.spec }),
  work: z.array(replicaWork).max(1000),
  pollAfterMs: z.int(),
})
export type WorkAnswer = z.infer<typeof workAnswer>

const replicaReport = z.object({
  namespace: z.string(),
  name: z.string(),
  state: replicaState,
  copiedBytes: z.int().optional(),
  allBytesRead: z.boolean().default(false),
  inProgress: z.boolean().default(false).describe('The task goes on: only copiedBytes, and the task’s lease.'),
  message: z.string().max(1024).optional(),
})
export type ReplicaReport = z.infer<typeof replicaReport>
export const replicaReports = z.object({ replicas: z.array(replicaReport).max(1000) })
