import { z } from 'zod'
import type { BlobFacts } from '../../artifacts/receive.ts'
import { inPhase, markSucceeded, setReplicated } from '../../queue/control.ts'
import type { Job } from '../../queue/job.ts'
import type { Database } from '../../runtime/sql.ts'
import type { ReplicatingJob, ReplicatingJobs } from '../artifact/jobs.ts'

/** What the claim of a job takes over from its pipeline, kept with the job's row. */
const target = z.object({
  regions: z.array(z.string()).min(1),
  replicate: z.enum(['Always', 'OnDeploy']),
  url: z.string(),
  command: z.array(z.string()),
})
export type Target = z.infer<typeof target>

const facts = z.object({
  key: z.string(),
  digest: z.string(),
  sizeBytes: z.number(),
  partSizeBytes: z.number(),
  checksum: z.string(),
  infoHash: z.string(),
  descriptorDigest: z.string(),
}) satisfies z.ZodType<BlobFacts>

/** The queue's jobs that wait for their replicas. */
export function replicatingJobs(database: Database): ReplicatingJobs {
  return {
    list: async () => (await inPhase(database, 'Replicating')).map(replicatingJob),
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
