/**
 * What people's tools and the hub say to each other, over HTTPS, with the caller's Kubernetes token:
 * GET /v1/jobs/<namespace>, GET /v1/jobs/<namespace>/<name>/log and POST /v1/jobs/<namespace>/<name>/rebuild.
 */
import { z } from 'zod'
import { buildJobPhase } from './buildJob.ts'

/** Of `…/log`, one a line, to whoever accepts `application/x-ndjson`. Kinds that are not known are to be passed over. */
export const logEvent = z.discriminatedUnion('type', [
  z.object({
    type: z.literal('log'),
    attempt: z.int().describe('Whose log: of the first worker that had the job, the second …, lost ones too.'),
    text: z.string(),
    end: z.int().describe('Where to go on: the `offset` of the next request, with this `attempt`.'),
  }),
  z.object({
    type: z.literal('state'),
    phase: buildJobPhase,
    attempt: z.int().describe('The last one; 0 before the first.'),
    position: z
      .int()
      .optional()
      .describe('In the queue, from 1; absent when far behind, or when its pipeline is full.'),
    replicated: z.string().optional(),
    code: z.string().optional(),
    message: z.string().optional(),
  }),
])
export type LogEvent = z.infer<typeof logEvent>

const jobRecord = z.object({
  name: z.string(),
  pipeline: z.string(),
  commit: z.string(),
  ref: z.string(),
  phase: buildJobPhase,
  attempt: z.int(),
  priority: z.int(),
  queuedAt: z.string(),
  startedAt: z.string().optional(),
  finishedAt: z.string().optional(),
  worker: z.string().optional(),
  replicated: z.string().optional(),
  code: z.string().optional(),
  message: z.string().optional(),
  inApi: z.boolean().describe('Whether there is a BuildJob of it; those that are over are removed after a while.'),
})
export type JobRecord = z.infer<typeof jobRecord>

/** A page of a namespace's builds, newest first. `continue` asks for the next one; a page may be short before the end. */
export const jobPage = z.object({ items: z.array(jobRecord), continue: z.string().optional() })
export type JobPage = z.infer<typeof jobPage>

export const rebuildAnswer = z.object({ name: z.string(), created: z.boolean() })
