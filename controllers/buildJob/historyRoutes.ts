import { z } from 'zod'
import { BuildJob, buildJobPhase } from '../../api/buildJob.ts'
import { ShoalError } from '../../api/errors.ts'
import type { JobPage, JobRecord, rebuildAnswer } from '../../api/jobApi.ts'
import type { Pipeline } from '../../api/pipeline.ts'
import { findJob } from '../../queue/control.ts'
import { enqueue } from '../../queue/enqueue.ts'
import { listJobs } from '../../queue/history.ts'
import type { Job } from '../../queue/job.ts'
import { type Access, authorize } from '../../runtime/access.ts'
import type { Server } from '../../runtime/server.ts'
import type { Database } from '../../runtime/sql.ts'
import { isFinal, timeOf } from './status.ts'

export interface HistoryRoutesOptions extends Access {
  database: Database
  /** By `namespace/name`. */
  buildJob: (key: string) => BuildJob | undefined
  pipeline: (key: string) => Pipeline | undefined
  /** A job was queued. */
  onChange?: () => void
}

const continueToken = z.codec(z.string(), z.int(), {
  decode: (text) => Number(Buffer.from(text, 'base64url').toString()),
  encode: (id) => Buffer.from(String(id)).toString('base64url'),
})

const query = z.object({
  pipeline: z.string().max(253).optional(),
  phase: buildJobPhase.optional(),
  limit: z.coerce.number().int().min(1).max(500).default(100),
  continue: continueToken.optional(),
})

/** /v1/jobs/<namespace> (api/jobApi.ts): all builds that have a row, and building one again. Any replica answers. */
export function registerHistoryRoutes(server: Server, options: HistoryRoutesOptions): void {
  const { database } = options

  server.get<{ Params: { namespace: string } }>('/v1/jobs/:namespace', async (request): Promise<JobPage> => {
    const { namespace } = request.params
    await authorize(options, request, { verb: 'list', resource: BuildJob.plural, namespace })
    const { continue: beforeId, ...wanted } = query.parse(request.query)
    const { jobs, nextId } = await listJobs(database, { namespace, ...wanted, beforeId })
    const items = jobs.map((job) => jobRecord(job, options.buildJob(`${job.namespace}/${job.name}`)))
    return { items, ...(nextId !== undefined && { continue: continueToken.encode(nextId) }) }
  })

  server.post<{ Params: { namespace: string; name: string } }>(
    '/v1/jobs/:namespace/:name/rebuild',
    async (request): Promise<z.infer<typeof rebuildAnswer>> => {
      const { namespace, name } = request.params
      await authorize(options, request, { verb: 'create', resource: BuildJob.plural, namespace })
      const job = await findJob(database, namespace, name)
      if (!job) throw new ShoalError('NotFound', `there is no job ${name} in namespace ${namespace}`)
      const { pipeline, commit, ref, priority } = job
      const maxJobs = options.pipeline(`${namespace}/${pipeline}`)?.spec.concurrency.max
      if (maxJobs === undefined) throw new ShoalError('NotFound', `there is no Pipeline ${pipeline} any more`)
      const again = { namespace, pipeline, commit, ref, priority, maxJobs }
      // A build that is under way is what the caller wants: also when it asks twice.
      const { job: last } = await enqueue(database, again)
      if (!isFinal(last)) return { name: last.name, created: false }
      const { job: rebuilt, created } = await enqueue(database, { ...again, rebuild: true })
      options.onChange?.()
      return { name: rebuilt.name, created }
    },
  )
}

function jobRecord(job: Job, object: BuildJob | undefined): JobRecord {
  const { name, pipeline, commit, ref, phase, attempt, priority } = job
  return {
    ...{ name, pipeline, commit, ref, phase, attempt, priority },
    queuedAt: new Date(job.createdAtMs).toISOString(),
    startedAt: timeOf(job.startedAtMs),
    finishedAt: timeOf(job.finishedAtMs),
    worker: job.worker ?? undefined,
    replicated: job.replicated ?? undefined,
    code: job.code ?? undefined,
    message: job.message ?? undefined,
    inApi: object !== undefined,
  }
}
