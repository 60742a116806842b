import { hash } from 'node:crypto'
import { parseDescriptor } from '../api/descriptor.ts'
import { ShoalError, Transient } from '../api/errors.ts'
import { type CheckOutcome, checkReplica, type ExpectedBlob, MAX_DESCRIPTOR_BYTES } from './check.ts'
import { forEachParallel, retry } from './parallel.ts'
import { compositeChecksum, type PartRange, partRanges } from './partSize.ts'
import type { Store } from './store.ts'
import { getRange, getSmall, putPart } from './transfer.ts'
import type { UploadedPart } from './uploads.ts'

export interface CopySource {
  /** Presigned, readable by ranges. */
  blobUrl: string
  descriptorUrl: string
}

export interface ReplicateOptions {
  signal: AbortSignal
  /** Bytes of the blob that are in our bucket. */
  onBytes?: (copiedBytes: number) => void
  /** The object that is there was found corrupt. */
  replace?: boolean
  /** Parts at a time, each in memory. Default 4. */
  parallel?: number
}

const ATTEMPTS_PER_PART = 4

/**
 * Copies one blob and its descriptor into our bucket, then reads all of it back. An upload that was broken off goes on
 * with the parts it has. Every part is hashed on its way, and nothing becomes visible unless all parts together give
 * the artifact's composite checksum.
 *
 * @throws Transient `Unavailable` (the source), `StoreUnreachable` (ours), `ChecksumMismatch` (the source has other bytes)
 */
export async function replicate(
  store: Store,
  blob: ExpectedBlob,
  source: CopySource,
  options: ReplicateOptions,
): Promise<CheckOutcome> {
  await copyDescriptor(store, blob, source, options.signal)
  const there = await whatIsThere(store, blob)
  if (there !== 'same' || options.replace) {
    // an object at the key would win over the new one
    if (there !== 'nothing') await store.delete(blob.key)
    await copyBlob(store, blob, source, options).catch(async (error: unknown) => {
      // Another replica of the region, on the same upload, may have completed it under our hands.
      options.signal.throwIfAborted()
      if ((await whatIsThere(store, blob)) !== 'same') throw error
    })
  }
  options.onBytes?.(blob.sizeBytes)
  return checkReplica(store, blob, { allBytes: true, signal: options.signal })
}

async function whatIsThere(store: Store, blob: ExpectedBlob): Promise<'same' | 'other' | 'nothing'> {
  try {
    const head = await store.head(blob.key)
    return head.sizeBytes === blob.sizeBytes && head.checksum === blob.checksum ? 'same' : 'other'
  } catch (error) {
    if (error instanceof ShoalError && error.code === 'ReplicaMissing') return 'nothing'
    throw error
  }
}

async function copyDescriptor(store: Store, blob: ExpectedBlob, source: CopySource, signal: AbortSignal) {
  const bytes = await retry(ATTEMPTS_PER_PART, signal, () =>
    getSmall(source.descriptorUrl, MAX_DESCRIPTOR_BYTES, signal),
  )
  if (parseDescriptor(bytes).digest !== blob.descriptorDigest)
    throw new Transient('ChecksumMismatch', 'The source’s descriptor is another one.')
  await store.put(blob.descriptorKey, bytes)
}

async function copyBlob(store: Store, blob: ExpectedBlob, source: CopySource, options: ReplicateOptions) {
  const { uploadId, parts } = await openUpload(store, blob)
  const ranges = partRanges(blob.sizeBytes, blob.partSizeBytes)
  const isDone = (range: PartRange) => parts.get(range.number)?.sizeBytes === range.sizeBytes
  let copiedBytes = ranges.filter(isDone).reduce((sum, range) => sum + range.sizeBytes, 0)
  options.onBytes?.(copiedBytes)
  const buffers: Uint8Array[] = []

  await forEachParallel(
    ranges.filter((range) => !isDone(range)),
    options.parallel ?? 4,
    async ({ number, first, sizeBytes }, signal) => {
      const buffer = buffers.pop() ?? new Uint8Array(blob.partSizeBytes)
      const bytes = buffer.subarray(0, sizeBytes)
      await retry(ATTEMPTS_PER_PART, signal, () => getRange(source.blobUrl, first, bytes, signal))
      const sha256 = hash('sha256', bytes, 'base64')
      const etag = await retry(ATTEMPTS_PER_PART, signal, async () =>
        putPart(await store.uploads.presignPart({ key: blob.key, uploadId, number, sizeBytes, sha256 }), bytes, signal),
      )
      buffers.push(buffer)
      parts.set(number, { number, etag, sha256, sizeBytes })
      copiedBytes += sizeBytes
      options.onBytes?.(copiedBytes)
    },
    options.signal,
  )

  const inOrder = ranges.map((range) => parts.get(range.number) as UploadedPart)
  if (compositeChecksum(inOrder.map((part) => part.sha256)) !== blob.checksum) {
    await store.uploads.abort(blob.key, uploadId)
    throw new Transient('ChecksumMismatch', 'The source’s bytes are not those that were built.')
  }
  await store.uploads.complete({
    key: blob.key,
    uploadId,
    parts: inOrder,
    sizeBytes: blob.sizeBytes,
    checksum: blob.checksum,
  })
}

async function openUpload(store: Store, blob: ExpectedBlob) {
  const open = (await store.uploads.list(blob.key)).findLast((upload) => upload.key === blob.key)
  if (!open) return { uploadId: await store.uploads.start(blob.key), parts: new Map<number, UploadedPart>() }
  const parts = await store.uploads.listParts(blob.key, open.uploadId)
  return { uploadId: open.uploadId, parts: new Map(parts.map((part) => [part.number, part])) }
}
