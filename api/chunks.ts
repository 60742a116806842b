/**
 * The chunks of a torrent's files, by which a machine knows what the release on its disk has of a new one: one entry
 * per chunk, in the order of the bytes; none crosses from a file into the next, so an unchanged file is a run of
 * unchanged chunks wherever it moved.
 *
 *   length 4, big endian | first 8 bytes of the SHA-256 8
 *
 * A digest is a hint where to look, and short because every machine fetches the list: what was found is still verified
 * by the SHA-256 of its pieces, and when a chunk is not what its digest said, the piece comes from peers. Two
 * different chunks of one length among 2^17 with the same digest are a chance of 2^-31 at most.
 */
import { invalid, type TorrentFile } from './torrent.ts'

export const CHUNK_ENTRY_BYTES = 12

export interface Chunk {
  /** Of the first byte, from the start of the first file. */
  offset: number
  sizeBytes: number
  /** The entry: chunks with the same are taken for the same. */
  key: string
}

/** The entries of a list that was checked. */
export function* readChunks(list: Uint8Array): Generator<Chunk> {
  const bytes = Buffer.from(list.buffer, list.byteOffset, list.byteLength)
  let offset = 0
  for (let at = 0; at < bytes.length; at += CHUNK_ENTRY_BYTES) {
    const sizeBytes = bytes.readUInt32BE(at)
    yield { offset, sizeBytes, key: bytes.toString('latin1', at, at + CHUNK_ENTRY_BYTES) }
    offset += sizeBytes
  }
}

/** @throws Stalled `DescriptorInvalid`: a chunk is empty or goes beyond its file, or chunks are missing or too many. */
export function checkChunks(list: Uint8Array, files: TorrentFile[]): void {
  if (list.length % CHUNK_ENTRY_BYTES !== 0) throw invalid('the list of chunks has half an entry')
  const chunks = readChunks(list)
  for (const { path, sizeBytes } of files) {
    for (let left = sizeBytes; left > 0; ) {
      const chunk = chunks.next().value
      if (!chunk || chunk.sizeBytes === 0 || chunk.sizeBytes > left)
        throw invalid(`the chunks do not add up to ${JSON.stringify(path)}`)
      left -= chunk.sizeBytes
    }
  }
  if (!chunks.next().done) throw invalid('there are more chunks than bytes')
}
