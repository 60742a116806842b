import { type BuildJob, type BuildJobPhase, finalPhases } from '../../api/buildJob.ts'
import type { Job } from '../../queue/job.ts'
import { type Standing, setCondition, standingConditions } from '../../runtime/conditions.ts'

type Status = NonNullable<BuildJob['status']>

export const timeOf = (ms: number | null) => (ms === null ? undefined : new Date(ms).toISOString())

/** The status of a BuildJob as its row says. */
export function buildJobStatus(
  job: Job,
  view: { object: BuildJob | undefined; position: number | undefined; nowMs: number },
): Status {
  const { object, position, nowMs } = view
  const generation = object?.metadata.generation
  const standing = standingOf(job)
  const succeeded = {
    type: 'Succeeded',
    status: job.phase === 'Succeeded' ? ('True' as const) : isFinal(job) ? ('False' as const) : ('Unknown' as const),
    reason: standing.reason,
    message: standing.message,
    ...(generation !== undefined && { observedGeneration: generation }),
  }
  const conditions = setCondition(object?.status?.conditions ?? [], succeeded, nowMs)
  const startedAt = timeOf(job.startedAtMs)
  const finishedAt = timeOf(job.finishedAtMs)
  return {
    ...(generation !== undefined && { observedGeneration: generation }),
    phase: job.phase,
    ...(job.phase === 'Queued' && position !== undefined && { queuePosition: position }),
    ...(job.worker !== null && { worker: job.worker }),
    attempt: job.attempt,
    ...(hasArtifact(job) && { artifactRef: { name: job.name } }),
    ...(job.replicated !== null && { replicated: job.replicated }),
    queuedAt: new Date(job.createdAtMs).toISOString(),
    ...(startedAt !== undefined && { startedAt }),
    ...(finishedAt !== undefined && { finishedAt }),
    message: standing.message,
    conditions: standingConditions(conditions, standing, generation, nowMs),
  }
}

export const isFinal = ({ phase }: { phase?: BuildJobPhase | undefined }) =>
  phase !== undefined && finalPhases.includes(phase)
const hasArtifact = ({ phase }: Job) => phase === 'Replicating' || phase === 'Succeeded'

function standingOf(job: Job): Standing {
  switch (job.phase) {
    case 'Queued':
      return { is: 'Reconciling', reason: 'Queued', message: 'waits for a worker' }
    case 'Running':
      return { is: 'Reconciling', reason: 'Running', message: `is built by ${job.worker}` }
    case 'Replicating':
      return {
        is: 'Reconciling',
        reason: 'Replicating',
        message: `is copied to every region (${job.replicated ?? '0'})`,
      }
    case 'Succeeded':
      return { is: 'Ready', reason: 'Succeeded', message: 'every region has the artifact' }
    case 'Cancelled':
      return { is: 'Stalled', reason: 'Cancelled', message: job.message ?? 'cancelled' }
    default:
      return { is: 'Stalled', reason: job.code ?? 'Internal', message: job.message ?? 'failed' }
  }
}
