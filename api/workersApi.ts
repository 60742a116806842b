/**
 * What the hub says of its queue and workers, to people: GET /v1/workers, as JSON over HTTPS. The caller's token is for
 * the API server itself, and may `list` `workers.shoal.dev` in the hub's namespace: there is no such resource, it is a
 * right of its own, so that whoever may see the workers need not see Pods.
 */
import { z } from 'zod'
import { time } from './meta.ts'

/** `draining`: gets no more jobs, it is about to be stopped. `silent`: for longer than the alarm threshold. */
export const workerState = z.enum(['busy', 'idle', 'draining', 'silent'])
export type WorkerState = z.infer<typeof workerState>

const worker = z.object({
  name: z.string(),
  class: z.string().describe('Its size: the label of its Deployment.'),
  isolation: z.string().describe('What keeps its builds in bounds.'),
  state: workerState,
  job: z.object({ namespace: z.string(), name: z.string(), since: time }).optional().describe('What it builds.'),
  firstSeen: time,
  lastSeen: time,
})

export const workersAnswer = z.object({
  now: time.describe('Of the clock that the other times are of.'),
  workers: z.array(worker),
  queue: z.object({
    ready: z.int().describe('Jobs that only a worker is missing to.'),
    blocked: z.int().describe('Jobs that wait for a slot of their pipeline.'),
    running: z.int(),
    oldestReadySeconds: z.number().optional().describe('Since the longest waiting of the ready ones was queued.'),
    wanted: z.record(z.string(), z.int()).describe('Workers by class, as their Deployments have it.'),
  }),
})
export type WorkersAnswer = z.infer<typeof workersAnswer>
