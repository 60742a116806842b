import { type Descriptor, parseDescriptor } from '../api/descriptor.ts'
import { Stalled, Transient } from '../api/errors.ts'
import { Cutter } from './cutter.ts'
import { descriptorKey } from './key.ts'
import { choosePartSizeBytes, compositeChecksum, partRanges } from './partSize.ts'
import type { Store } from './store.ts'

/** What is known of a blob that was read back and found whole. */
export interface BlobFacts {
  key: string
  /** `sha256:<hex>` */
  digest: string
  sizeBytes: number
  partSizeBytes: number
  /** The store's composite SHA-256 at partSizeBytes, `base64-N`. */
  checksum: string
  infoHash: string
  descriptorDigest: string
}

export interface ReceivedUpload {
  key: string
  uploadId: string
  parts: { number: number; etag: string; sha256: string }[]
  digest: string
  sizeBytes: number
  /** The .torrent's bytes. */
  descriptor: Uint8Array
  signal?: AbortSignal
}

/**
 * The hub's end of an upload: completes it, reads every byte back from the bucket, compares blob and pieces with what
 * the worker said, and puts the descriptor beside it. May be repeated. The pieces are compared too, because machines
 * would refuse a blob that doesn't fit its descriptor, and only in the middle of a rollout.
 *
 * @throws Stalled `DescriptorInvalid`, `Invalid` (parts that don't fit the size); Transient `ChecksumMismatch` (the
 *   object is deleted then), `StoreUnreachable`
 */
export async function receiveUpload(store: Store, upload: ReceivedUpload): Promise<BlobFacts> {
  const descriptor = parseDescriptor(upload.descriptor)
  const { key, uploadId, digest, sizeBytes } = upload
  if (descriptor.sizeBytes !== sizeBytes)
    throw new Stalled('DescriptorInvalid', 'The descriptor’s files are not as large as the blob.')
  const partSizeBytes = choosePartSizeBytes(sizeBytes)
  const ranges = partRanges(sizeBytes, partSizeBytes)
  if (
    ranges.length !== upload.parts.length ||
    ranges.some(({ number }, index) => upload.parts[index]?.number !== number)
  )
    throw new Stalled(
      'Invalid',
      `An upload of ${sizeBytes} bytes has parts 1 to ${ranges.length}, each once, in order.`,
    )
  const checksum = compositeChecksum(upload.parts.map((part) => part.sha256))

  await store.uploads.complete({ key, uploadId, parts: upload.parts, sizeBytes, checksum })
  const difference = await compare(store, upload, descriptor)
  if (difference) {
    await store.delete(key)
    throw new Transient('ChecksumMismatch', `The blob read back from the bucket differs: ${difference}.`)
  }
  await store.put(descriptorKey(key), upload.descriptor)
  return {
    key,
    digest,
    sizeBytes,
    partSizeBytes,
    checksum,
    infoHash: descriptor.infoHash,
    descriptorDigest: descriptor.digest,
  }
}

async function compare(store: Store, upload: ReceivedUpload, descriptor: Descriptor): Promise<string | undefined> {
  const pieces = new Cutter({ algorithm: 'sha256', everyBytes: descriptor.pieceLengthBytes })
  const found = await store.readBack(upload.key, {
    signal: upload.signal,
    onChunk: (chunk) => pieces.update(chunk),
  })
  if (found.sizeBytes !== upload.sizeBytes) return `${found.sizeBytes} bytes, not ${upload.sizeBytes}`
  if (found.digest !== upload.digest) return `it is ${found.digest}, not ${upload.digest}`
  if (!Buffer.from(pieces.finish()).equals(descriptor.pieceSha256)) return 'its pieces are not those of the descriptor'
  return undefined
}
