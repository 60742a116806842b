import { ShoalError } from '../api/errors.ts'
import { pieceSizeBytes, type Torrent } from '../api/torrent.ts'
import type { PieceBuffer, PieceCache } from './buffers.ts'
import type { PieceStore } from './store.ts'
import type { LoadedBlock, Wanted } from './uploader.ts'

/**
 * Read from disk at once. Peers who each fetch another piece take turns: with pieces of 4 MiB read whole, 12 of them had
 * a seed read each four times, and hold 4 MiB each.
 */
const PART_BYTES = 1 << 20

/** Blocks for uploading: from memory, or from disk, a part of a piece once for all who ask. */
export class BlockReader {
  readonly #torrent: Torrent
  readonly #cache: PieceCache
  readonly #store: PieceStore

  constructor(o: { torrent: Torrent; cache: PieceCache; store: PieceStore }) {
    this.#torrent = o.torrent
    this.#cache = o.cache
    this.#store = o.store
  }

  /** A piece that was verified, held in memory for a while. */
  keep(index: number, buffer: PieceBuffer): void {
    this.#cache.put(this.#key(index), buffer)
  }

  /** Of a piece we have, held for the caller; undefined when the piece is damaged, and no longer counted. */
  async read({ pieceIndex, begin, sizeBytes }: Wanted): Promise<LoadedBlock | undefined> {
    const key = this.#key(pieceIndex)
    const pieceBytes = pieceSizeBytes(this.#torrent, pieceIndex)
    try {
      if (pieceBytes <= PART_BYTES || this.#cache.has(key) || !this.#store.saw(pieceIndex))
        return { buffer: await this.#cache.get(key, () => found(this.#store.read(pieceIndex))), at: begin }
      const at = begin % PART_BYTES
      const first = begin - at
      const part = (from: number, bytes: number) => found(this.#store.readPart(pieceIndex, from, bytes))
      if (at + sizeBytes > PART_BYTES) return { buffer: await part(begin, sizeBytes), at: 0 }
      const partBytes = Math.min(PART_BYTES, pieceBytes - first)
      return { buffer: await this.#cache.get(`${key}/${first}`, () => part(first, partBytes)), at }
    } catch (error) {
      if (error instanceof ShoalError && error.code === 'ChecksumMismatch') return undefined
      throw error
    }
  }

  forget(): void {
    this.#cache.forget(this.#torrent.infoHash)
  }

  #key(index: number): string {
    return `${this.#torrent.infoHash}/${index}`
  }
}

/** The cache knows no piece that is not there. */
async function found(read: Promise<PieceBuffer | undefined>): Promise<PieceBuffer> {
  const buffer = await read
  if (buffer) return buffer
  throw new ShoalError('ChecksumMismatch', 'A piece changed on disk.')
}
