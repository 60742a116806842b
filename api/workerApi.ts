/**
 * What a worker and the hub say to each other, as JSON over HTTPS: POST /v1/worker/{claim,heartbeat,log,finish,leave} and
 * POST /v1/worker/upload/{start,parts,complete}. The caller is a ServiceAccount by its token (audience `shoal-hub`).
 * Every call but claim and leave names a job and its fencing token, and answers 409 `Fenced` when that is not the latest.
 */
import { z } from 'zod'
import { type ErrorCode, errorCodes } from './errors.ts'
import { sha256Digest } from './meta.ts'
import { build } from './pipeline.ts'

const errorCode = z.enum(Object.keys(errorCodes) as [ErrorCode, ...ErrorCode[]])

/** A worker's right to a job: the job's row and the token of the claim. */
export const jobClaim = z.object({ jobId: z.int(), token: z.string().min(1).max(64) })
export type JobClaim = z.infer<typeof jobClaim>

export const claimRequest = z.object({
  worker: z.string().min(1).max(191).describe('Unique per process: a restarted worker has another name.'),
  pollId: z.int().min(1).describe('Grows with each poll of this worker; asking again with the same id is idempotent.'),
  probeUrl: z.url().max(2048).describe('Where the health checker asks this worker what it holds.'),
  probeSecret: z.string().min(32).max(128).describe('The bearer token the health checker proves itself with.'),
  holdMs: z
    .int()
    .min(0)
    .optional()
    .describe('How long it waits for a job, where that is less than the hub would hold it.'),
  class: z.string().min(1).max(63).default('standard').describe('Its size: the label of the Deployment it belongs to.'),
  isolation: z.string().max(255).default('').describe('What keeps its builds in bounds, for people.'),
})
export type ClaimRequest = z.input<typeof claimRequest>

/** A worker stops: it holds no job and is not to be called silent. */
export const leaveRequest = claimRequest.pick({ worker: true, probeSecret: true })

const claimedJob = jobClaim.extend({
  namespace: z.string(),
  name: z.string().describe('Of the BuildJob, and of the artifact to be.'),
  pipeline: z.string(),
  commit: z.string(),
  ref: z.string(),
  attempt: z.int(),
  source: z.object({ url: z.string(), username: z.string().optional(), password: z.string().optional() }),
  build,
  leaseMs: z.int().describe('The worker stops by itself when no heartbeat succeeded for so long.'),
  heartbeatMs: z.int(),
})
export type ClaimedJob = z.infer<typeof claimedJob>

export const claimAnswer = z.object({ job: claimedJob.optional(), pollAfterMs: z.int() })
export type ClaimAnswer = z.infer<typeof claimAnswer>

export const heartbeatAnswer = z.object({ leaseMs: z.int(), cancel: z.boolean() })

export const logRequest = jobClaim.extend({
  offset: z.int().min(0).describe('Where in all that was printed this text is, in bytes; a gap was left out.'),
  text: z.string().max(1_000_000),
})

/** Of an attempt's log, about so much of its beginning and of its end is kept. */
export const keptLogBytes = { head: 4 << 20, tail: 1 << 20 }

export const uploadStartRequest = jobClaim.extend({ sizeBytes: z.int().min(1) })
export const uploadStartAnswer = z.object({ uploadId: z.string(), partSizeBytes: z.int() })

export const uploadPartsRequest = jobClaim.extend({
  uploadId: z.string(),
  parts: z
    .array(z.object({ number: z.int().min(1).max(10_000), sizeBytes: z.int().min(1), sha256: z.string() }))
    .min(1)
    .max(32)
    .describe('The next window of parts; sha256 in base64.'),
})
export const uploadPartsAnswer = z.object({
  parts: z.array(z.object({ number: z.int(), url: z.url(), headers: z.record(z.string(), z.string()) })),
})

/** Asks the hub to complete the upload, then to read the whole blob back and compare. Takes seconds per GB. */
export const uploadCompleteRequest = jobClaim.extend({
  uploadId: z.string(),
  parts: z
    .array(z.object({ number: z.int(), etag: z.string(), sha256: z.string() }))
    .min(1)
    .max(10_000),
  digest: sha256Digest,
  sizeBytes: z.int(),
  descriptor: z.base64().describe('The .torrent.'),
})

export const finishRequest = jobClaim.extend({
  outcome: z.discriminatedUnion('result', [
    z.object({ result: z.literal('Built') }),
    z.object({ result: z.literal('Failed'), code: errorCode, message: z.string().max(4096) }),
    z.object({ result: z.literal('HandedBack') }).describe('The worker is shutting down; not an attempt.'),
  ]),
})
export type FinishRequest = z.infer<typeof finishRequest>

/** The answer of a worker's own GET /probe. */
export const probeAnswer = z.object({
  worker: z.string(),
  lastPollId: z.int().describe('The last poll whose answer this worker has processed.'),
  held: z.array(jobClaim),
})
export type ProbeAnswer = z.infer<typeof probeAnswer>
