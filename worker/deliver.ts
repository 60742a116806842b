import { isAbsolute, join } from 'node:path'
import { type ShoalError, Stalled, Transient } from '../api/errors.ts'
import { type ClaimedJob, uploadPartsAnswer, uploadStartAnswer } from '../api/workerApi.ts'
import { type HashedOutput, hashOutput } from '../artifacts/hashOutput.ts'
import { retry } from '../artifacts/parallel.ts'
import { type UploadCalls, uploadOutput } from '../artifacts/upload.ts'
import type { Lease } from './lease.ts'

export interface DeliverOptions {
  job: ClaimedJob
  checkout: string
  lease: Lease
  signal: AbortSignal
  /** Whole uploads. Default: 8, which is about a minute of a store that refuses. */
  attempts?: number
}

/** The hub reads the whole blob back before it answers. */
const completeTimeoutMs = 15 * 60_000
const attemptsPerCall = 5

/**
 * Hashes what the build left at `build.output` and uploads it by way of the hub, which reads it back and checks it.
 * The build's processes must be gone, so that nobody changes it meanwhile.
 *
 * @throws Stalled `OutputMissing`, `OutputOutside`, `Invalid`; Transient when the store or the hub refuses for long
 */
export async function deliver(options: DeliverOptions): Promise<HashedOutput> {
  const { job, checkout, lease, signal, attempts = 8 } = options
  if (isAbsolute(job.build.output))
    throw new Stalled('OutputOutside', `build.output ${job.build.output} is not relative to the checkout`)
  const path = join(checkout, job.build.output)
  const output = await hashOutput(path, { name: job.pipeline, within: checkout, signal })
  lease.check()
  await retry(attempts, signal, () => uploadOutput(output, uploadCalls(lease, signal), { signal }))
  return output
}

function uploadCalls(lease: Lease, signal: AbortSignal): UploadCalls {
  const steadily = <T>(call: () => Promise<T>) => retry(attemptsPerCall, signal, call)
  return {
    start: (sizeBytes) =>
      steadily(() => lease.call('upload/start', { sizeBytes }, { schema: uploadStartAnswer, signal })),
    // uploadOutput itself asks again, part by part.
    parts: async (uploadId, parts) => {
      const answer = await lease.call('upload/parts', { uploadId, parts }, { schema: uploadPartsAnswer, signal })
      return answer.parts
    },
    // Repeating it is fine unless the blob is gone: then everything is uploaded anew.
    complete: (uploadId, facts) =>
      steadily(async () => {
        try {
          await lease.call('upload/complete', { uploadId, ...facts }, { timeoutMs: completeTimeoutMs, signal })
        } catch (error) {
          throw error instanceof Transient && isGone(error) ? new UploadGone(error) : error
        }
      }).catch((error: unknown) => {
        throw error instanceof UploadGone ? error.cause : error
      }),
  }
}

const isGone = ({ code }: ShoalError) => code === 'ChecksumMismatch' || code === 'ReplicaMissing'

class UploadGone extends Error {
  constructor(cause: Transient) {
    super('the upload is gone', { cause })
  }
}
