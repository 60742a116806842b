import { z } from 'zod'
import { Stalled } from '../../api/errors.ts'
import type { Pipeline } from '../../api/pipeline.ts'
import type { BlobFacts } from '../../artifacts/receive.ts'
import { markSucceeded, replicating, setReplicated } from '../../queue/control.ts'
import type { Job } from '../../queue/job.ts'
import type { TargetOf } from '../../queue/newLease.ts'
import type { Database } from '../../runtime/sql.ts'
import type { ReplicatingJob, ReplicatingJobs } from '../artifact/jobs.ts'
import type { RegionDirectory } from '../region/directory.ts'

/** What the claim of a job takes over from its pipeline, kept with the job's row. */
const target = z.object({
  regions: z.array(z.string()).min(1),
  replicate: z.enum(['Always', 'OnDeploy']),
  url: z.string(),
  command: z.array(z.string()),
})
type Target = z.infer<typeof target>

const facts = z.object({
  key: z.string(),
  digest: z.string(),
  sizeBytes: z.number(),
  partSizeBytes: z.number(),
  checksum: z.string(),
  infoHash: z.string(),
  descriptorDigest: z.string(),
}) satisfies z.ZodType<BlobFacts>

interface TargetOptions {
  /** By `namespace/name`. */
  pipeline: (key: string) => Pipeline | undefined
  regions: Pick<RegionDirectory, 'activeRegions' | 'get'>
}

/** What a claim keeps with its job. It throws Stalled `NotFound`, `RegionUnknown`: such a job can't be built. */
export function targetOf({ pipeline, regions }: TargetOptions): TargetOf {
  return (job): Target => {
    const known = pipeline(`${job.namespace}/${job.pipeline}`)
    if (!known) throw new Stalled('NotFound', `there is no Pipeline ${job.pipeline}`)
    const { source, build, replicate } = known.spec
    return { regions: targetRegions(known, regions), replicate, url: source.url, command: build.command }
  }
}

/** The regions the artifact must reach: those that exist and aren't cordoned now. */
function targetRegions(pipeline: Pipeline, regions: TargetOptions['regions']): string[] {
  const active = regions.activeRegions()
  const named = pipeline.spec.regions.includes('*') ? active : pipeline.spec.regions
  const unknown = named.find((name) => !regions.get(name))
  if (unknown !== undefined) throw new Stalled('RegionUnknown', `the pipeline names region ${unknown}`)
  const wanted = named.filter((name) => active.includes(name))
  if (wanted.length === 0) throw new Stalled('RegionUnknown', 'the pipeline names no region that is not cordoned')
  return wanted
}

/** The queue's jobs that wait for their replicas. */
export function replicatingJobs(database: Database): ReplicatingJobs {
  return {
    list: async () => (await replicating(database)).map(replicatingJob),
    markSucceeded: (jobId) => markSucceeded(database, jobId),
    setReplicated: (jobId, replicated) => setReplicated(database, jobId, replicated),
  }
}

function replicatingJob(job: Job): ReplicatingJob {
  const { regions, replicate, url, command } = target.parse(JSON.parse(job.target ?? 'null'))
  const { id, namespace, name, pipeline, commit, ref } = job
  return {
    id,
    namespace,
    name,
    pipeline,
    commit,
    regions,
    replicate,
    facts: facts.parse(JSON.parse(job.facts ?? 'null')),
    build: {
      source: { url, ref },
      command,
      worker: job.worker ?? 'unknown',
      startedAt: new Date(job.startedAtMs ?? job.createdAtMs).toISOString(),
      finishedAt: new Date(job.finishedAtMs ?? job.startedAtMs ?? job.createdAtMs).toISOString(),
    },
  }
}
