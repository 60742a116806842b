import { createHash } from 'node:crypto'

const DEFAULT_PART_SIZE_BYTES = 16 << 20
const MAX_PARTS = 10_000

/**
 * The part size of an upload of `sizeBytes`: 16 MiB, doubled until 10,000 parts are enough (S3's limits are 5 MiB and
 * 10,000). Worker and hub both derive it, and the composite checksum depends on it.
 */
export function choosePartSizeBytes(sizeBytes: number): number {
  let partSizeBytes = DEFAULT_PART_SIZE_BYTES
  while (sizeBytes / partSizeBytes > MAX_PARTS) partSizeBytes *= 2
  return partSizeBytes
}

export interface PartRange {
  /** From 1, as S3 counts. */
  number: number
  /** First byte in the blob. */
  first: number
  sizeBytes: number
}

/** The parts of a blob, in order. */
export function partRanges(sizeBytes: number, partSizeBytes: number): PartRange[] {
  return Array.from({ length: Math.ceil(sizeBytes / partSizeBytes) }, (_, index) => ({
    number: index + 1,
    first: index * partSizeBytes,
    sizeBytes: Math.min(partSizeBytes, sizeBytes - index * partSizeBytes),
  }))
}

/** S3's composite SHA-256 of a multipart object: the digest of its parts' digests (base64, in order), as `base64-N`. */
export function compositeChecksum(partSha256: string[]): string {
  const hash = createHash('sha256')
  for (const part of partSha256) hash.update(part, 'base64')
  return `${hash.digest('base64')}-${partSha256.length}`
}
