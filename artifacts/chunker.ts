import { createHash, type Hash } from 'node:crypto'
import { CHUNK_ENTRY_BYTES } from '../api/chunks.ts'

const FIRST_AVERAGE_BYTES = 64 << 10
const MAX_CHUNKS = 2 ** 16

/**
 * The Gear hash's table: the first 4 bytes, big endian, of the SHA-256 of `shoal gear N`, N from 0 to 255. Part of the
 * format: with another, two builds of the same bytes have nothing in common.
 */
const GEAR = Int32Array.from({ length: 256 }, (_, byte) =>
  createHash('sha256').update(`shoal gear ${byte}`).digest().readInt32BE(0),
)

/**
 * 64 KiB up to 4 GiB, then as many more as keep the list at 2^16 entries, 0.8 MB, which every machine fetches before it
 * begins. Always a power of two, so that releases that grow share a size; where one crosses 4, 8, 16… GiB its files of
 * many chunks are fetched whole, once.
 */
export function chunkAverageBytes(sizeBytes: number): number {
  let average = FIRST_AVERAGE_BYTES
  while (sizeBytes / average > MAX_CHUNKS) average *= 2
  return average
}

/**
 * Cuts files where their content says, so that bytes put in or taken out move the cuts around them and no others: the
 * Gear hash of FastCDC (Xia et al., USENIX ATC 2016) over the last 32 bytes, a cut after each byte that leaves its
 * highest bits 0. The first three quarters of an average have no cut and are not even looked at: 2.7 GB/s, with half of
 * it 1.2, and real builds had as much in common either way. One cut at four averages at the latest, and one at every
 * end of a file.
 */
export class Chunker {
  readonly #minBytes: number
  readonly #maxBytes: number
  /** What is left of a hash after this shift is 0 once in a quarter of an average. */
  readonly #shift: number
  readonly #entries: Buffer[] = []
  #sha256: Hash = createHash('sha256')
  #gear = 0
  #inChunk = 0

  constructor(averageBytes: number) {
    this.#minBytes = (averageBytes * 3) / 4
    this.#maxBytes = averageBytes * 4
    this.#shift = 32 - Math.log2(averageBytes / 4)
  }

  update(bytes: Uint8Array): void {
    for (let at = 0; at < bytes.length; ) {
      const cut = this.#find(bytes, at)
      const end = cut ?? bytes.length
      this.#sha256.update(bytes.subarray(at, end))
      this.#inChunk += end - at
      at = end
      if (cut !== undefined) this.#cut()
    }
  }

  /** Where in `bytes` the chunk ends that goes on at `at`; undefined: not in them. */
  #find(bytes: Uint8Array, at: number): number | undefined {
    const shift = this.#shift
    const last = at + this.#maxBytes - this.#inChunk
    const end = Math.min(bytes.length, last)
    let gear = this.#gear
    for (let i = at + Math.max(0, this.#minBytes - this.#inChunk); i < end; i++) {
      gear = ((gear << 1) + (GEAR[bytes[i] ?? 0] ?? 0)) | 0
      if (gear >>> shift === 0) return i + 1
    }
    this.#gear = gear
    return last <= bytes.length ? last : undefined
  }

  #cut(): void {
    const entry = Buffer.alloc(CHUNK_ENTRY_BYTES)
    entry.writeUInt32BE(this.#inChunk)
    this.#sha256.digest().copy(entry, 4, 0, CHUNK_ENTRY_BYTES - 4)
    this.#entries.push(entry)
    this.#sha256 = createHash('sha256')
    this.#gear = 0
    this.#inChunk = 0
  }

  endFile(): void {
    if (this.#inChunk > 0) this.#cut()
  }

  /** The list, as in `api/chunks.ts`. */
  finish(): Uint8Array {
    return Buffer.concat(this.#entries)
  }
}
