import { constants } from 'node:fs'
import { open } from 'node:fs/promises'
import { Worker } from 'node:worker_threads'
import { encodeDescriptor, parseDescriptor } from '../api/descriptor.ts'
import { Stalled } from '../api/errors.ts'
import { suggestPieceLengthBytes } from '../api/torrent.ts'
import { chunkAverageBytes } from './chunker.ts'
import type { LaneInput, LaneMessage, LanePlan } from './hashLane.ts'
import { listOutput, type OutputFile } from './outputFiles.ts'
import { choosePartSizeBytes, compositeChecksum, type PartRange, partRanges } from './partSize.ts'

export interface HashOptions {
  /** The pipeline's name: it is part of the descriptor, so it has to stay the same for the digest to stay the same. */
  name: string
  /** The output's real path must be inside this folder. */
  within?: string
  signal?: AbortSignal
  onBytes?: (hashedBytes: number, totalBytes: number) => void
}

interface HashedPart {
  number: number
  sizeBytes: number
  /** base64 */
  sha256: string
}

export interface HashedOutput {
  /** The .torrent's bytes. */
  descriptor: Uint8Array
  infoHash: string
  descriptorDigest: string
  /** `sha256:<hex>` of the blob. */
  digest: string
  sizeBytes: number
  partSizeBytes: number
  /** The store's composite SHA-256 at partSizeBytes. */
  checksum: string
  parts: HashedPart[]
  /** The bytes of one part, read from the files again. */
  readPart(number: number): Promise<Uint8Array>
}

/**
 * Hashes a build's output, a file or a folder: blob, pieces, parts and chunks, each byte by five hashes. Three threads
 * of about the same work, reading the files themselves; that costs two more reads from the page cache and saves passing
 * buffers.
 * The same files and name give the same digests.
 *
 * @throws Stalled as `listOutput`; `Invalid` when a file changes meanwhile
 */
export async function hashOutput(path: string, options: HashOptions): Promise<HashedOutput> {
  const files = await listOutput(path, options.within)
  const sizeBytes = files.reduce((sum, file) => sum + file.sizeBytes, 0)
  const partSizeBytes = choosePartSizeBytes(sizeBytes)
  const pieceLengthBytes = suggestPieceLengthBytes(sizeBytes)
  const onBytes = options.onBytes && ((bytes: number) => options.onBytes?.(bytes, sizeBytes))

  const [[blob, partDigests], pieces, [chunks]] = await Promise.all([
    runLane(files, [{ algorithm: 'sha256' }, { algorithm: 'sha256', everyBytes: partSizeBytes }], {
      signal: options.signal,
      onBytes,
    }),
    hashPieces(files, pieceLengthBytes, { signal: options.signal }),
    runLane(files, [{ chunkAverageBytes: chunkAverageBytes(sizeBytes) }], { signal: options.signal }),
  ])

  const descriptor = encodeDescriptor({
    name: options.name,
    pieceLengthBytes,
    files: files.map(({ absolute: _, ...file }) => file),
    ...pieces,
    chunks,
  })
  const identity = parseDescriptor(descriptor)
  const ranges = partRanges(sizeBytes, partSizeBytes)
  const parts = ranges.map(({ number, sizeBytes }, index) => ({
    number,
    sizeBytes,
    sha256: Buffer.from(partDigests.subarray(index * 32, index * 32 + 32)).toString('base64'),
  }))
  return {
    descriptor,
    infoHash: identity.infoHash,
    descriptorDigest: identity.digest,
    digest: `sha256:${Buffer.from(blob).toString('hex')}`,
    sizeBytes,
    partSizeBytes,
    checksum: compositeChecksum(parts.map((part) => part.sha256)),
    parts,
    readPart: (number) => readRange(files, ranges[number - 1]),
  }
}

/** Digests of the pieces of these files, one after the other. @throws Stalled `Invalid` when a file changes meanwhile */
export async function hashPieces(
  files: OutputFile[],
  pieceLengthBytes: number,
  options: LaneOptions,
): Promise<{ pieceSha1: Uint8Array; pieceSha256: Uint8Array }> {
  const everyBytes = pieceLengthBytes
  const [pieceSha1, pieceSha256] = await runLane(
    files,
    [
      { algorithm: 'sha1', everyBytes },
      { algorithm: 'sha256', everyBytes },
    ],
    options,
  )
  return { pieceSha1, pieceSha256 }
}

interface LaneOptions {
  signal: AbortSignal | undefined
  onBytes?: ((bytes: number) => void) | undefined
}

async function runLane<const Plans extends LanePlan[]>(
  files: OutputFile[],
  plans: Plans,
  options: LaneOptions,
): Promise<{ [Plan in keyof Plans]: Uint8Array }> {
  options.signal?.throwIfAborted()
  const input: LaneInput = {
    files: files.filter((file) => file.sizeBytes > 0).map(({ absolute, sizeBytes }) => ({ absolute, sizeBytes })),
    plans,
  }
  const lane = new Worker(new URL('./hashLane.ts', import.meta.url), { workerData: input })
  const { promise, resolve, reject } = Promise.withResolvers<{ [Plan in keyof Plans]: Uint8Array }>()
  const abort = () => reject(options.signal?.reason)
  options.signal?.addEventListener('abort', abort)
  lane.once('error', reject)
  lane.once('exit', () => reject(new Error('the hashing thread ended early')))
  lane.on('message', (message: LaneMessage) => {
    if (message.type === 'progress') options.onBytes?.(message.bytes)
    else if (message.type === 'done') resolve(message.results as { [Plan in keyof Plans]: Uint8Array })
    else reject(new Stalled('Invalid', `${message.absolute} changed while it was hashed.`))
  })
  try {
    return await promise
  } finally {
    options.signal?.removeEventListener('abort', abort)
    await lane.terminate()
  }
}

/** The bytes of a range of the blob. */
async function readRange(files: OutputFile[], range: PartRange | undefined): Promise<Uint8Array> {
  if (!range) throw new RangeError('no such part')
  const bytes = Buffer.allocUnsafeSlow(range.sizeBytes)
  let filled = 0
  let fileFirst = 0
  for (const file of files) {
    const offset = range.first + filled - fileFirst
    fileFirst += file.sizeBytes
    if (offset >= file.sizeBytes) continue
    const length = Math.min(file.sizeBytes - offset, range.sizeBytes - filled)
    await using handle = await open(file.absolute, constants.O_RDONLY | constants.O_NOFOLLOW)
    const { bytesRead } = await handle.read(bytes, filled, length, offset)
    if (bytesRead !== length) throw new Stalled('Invalid', `${file.path} changed while it was uploaded.`)
    filled += length
    if (filled === range.sizeBytes) break
  }
  return bytes
}
