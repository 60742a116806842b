import { Stalled } from '../api/errors.ts'
import type { HashedOutput } from './hashOutput.ts'
import { forEachParallel, retry } from './parallel.ts'
import { putPart } from './transfer.ts'
import type { PresignedPart } from './uploads.ts'

/** The hub's side of an upload, as the worker calls it (api/workerApi.ts). */
export interface UploadCalls {
  start(sizeBytes: number): Promise<{ uploadId: string; partSizeBytes: number }>
  parts(
    uploadId: string,
    parts: { number: number; sizeBytes: number; sha256: string }[],
  ): Promise<({ number: number } & PresignedPart)[]>
  complete(
    uploadId: string,
    facts: {
      parts: { number: number; etag: string; sha256: string }[]
      digest: string
      sizeBytes: number
      /** The .torrent, base64. */
      descriptor: string
    },
  ): Promise<void>
}

const PARTS_IN_FLIGHT = 4
const ATTEMPTS_PER_PART = 5

/**
 * Uploads a hashed output part by part, four at a time, and has the hub complete and check it. The right to upload is
 * asked for part by part, just before use, and again for each new attempt, so that it never expires in a queue.
 *
 * @throws whatever `calls` throw (Fenced stops at once), and Transient when a part fails five times
 */
export async function uploadOutput(
  output: HashedOutput,
  calls: UploadCalls,
  options: { signal: AbortSignal; onBytes?: (sentBytes: number, totalBytes: number) => void },
): Promise<void> {
  const { uploadId, partSizeBytes } = await calls.start(output.sizeBytes)
  if (partSizeBytes !== output.partSizeBytes)
    throw new Stalled(
      'Invalid',
      `The hub wants parts of ${partSizeBytes} bytes, this worker made ${output.partSizeBytes}.`,
    )
  const etags = new Map<number, string>()
  let sentBytes = 0
  await forEachParallel(
    output.parts,
    PARTS_IN_FLIGHT,
    async (part, signal) => {
      const bytes = await output.readPart(part.number)
      const etag = await retry(ATTEMPTS_PER_PART, signal, async () => {
        const [presigned] = await calls.parts(uploadId, [part])
        if (!presigned) throw new Stalled('Internal', 'The hub gave no URL for a part.')
        return putPart(presigned, bytes, signal)
      })
      etags.set(part.number, etag)
      sentBytes += part.sizeBytes
      options.onBytes?.(sentBytes, output.sizeBytes)
    },
    options.signal,
  )
  await calls.complete(uploadId, {
    parts: output.parts.map(({ number, sha256 }) => ({ number, etag: etags.get(number) ?? '', sha256 })),
    digest: output.digest,
    sizeBytes: output.sizeBytes,
    descriptor: Buffer.from(output.descriptor).toString('base64'),
  })
}
