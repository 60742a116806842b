import { readChunks } from '../api/chunks.ts'
import { pieceSizeBytes, type Torrent } from '../api/torrent.ts'
import { TorrentFiles } from './files.ts'
import { STANDARD_BLOCK_BYTES } from './request.ts'

/** A release on this disk: `dir` is the folder that its torrent's paths begin in. */
export interface LocalRelease {
  torrent: Torrent
  dir: string
}

/** A stretch of a piece, and where a local release has it. */
interface Stretch {
  begin: number
  end: number
  release: number
  /** In that release's bytes, of the stretch's first. */
  from: number
}

/**
 * What releases on this disk have of a torrent, by their lists of chunks. Nothing is read to find out, and nothing of
 * it is trusted: files may be damaged or gone by the time they are read.
 */
export class LocalChunks implements AsyncDisposable {
  readonly #torrent: Torrent
  readonly #releases: TorrentFiles[]
  /** By piece, in rising order. */
  readonly #stretches = new Map<number, Stretch[]>()
  readonly #fault: (piece: number, error: unknown) => void
  /** In pieces that were verified and kept. */
  takenBytes = 0

  constructor(torrent: Torrent, releases: LocalRelease[], fault: (piece: number, error: unknown) => void) {
    this.#torrent = torrent
    this.#fault = fault
    this.#releases = releases.map(({ torrent, dir }) => TorrentFiles.assume(torrent, dir))
    const known = index(releases)
    let before: Place | undefined
    for (const { offset, sizeBytes, key } of readChunks(torrent.chunks ?? new Uint8Array())) {
      // what follows the chunk before is better than the same bytes elsewhere: one read for both
      const place = before?.next?.key === key ? before.next : known.get(key)
      if (place) this.#add(offset, sizeBytes, place)
      before = place
    }
  }

  #add(offset: number, sizeBytes: number, { release, offset: from }: Place): void {
    const { pieceLengthBytes } = this.#torrent
    for (let done = 0; done < sizeBytes; ) {
      const piece = Math.floor((offset + done) / pieceLengthBytes)
      const begin = offset + done - piece * pieceLengthBytes
      const end = Math.min(pieceLengthBytes, begin + sizeBytes - done)
      const stretches = this.#stretches.get(piece) ?? []
      const last = stretches.at(-1)
      if (last?.end === begin && last.release === release && last.from + last.end - last.begin === from + done)
        last.end = end
      else stretches.push({ begin, end, release, from: from + done })
      this.#stretches.set(piece, stretches)
      done += end - begin
    }
  }

  /** The pieces of which every byte is there. */
  whole(): number[] {
    return [...this.#stretches.keys()].filter((piece) => {
      const [first] = this.#covered(piece)
      return first?.begin === 0 && first.end === pieceSizeBytes(this.#torrent, piece)
    })
  }

  /** The runs of whole units that are there of a piece; the last unit of a piece is as long as it is. */
  runs(piece: number, unitBytes: number): { unit: number; units: number }[] {
    const sizeBytes = pieceSizeBytes(this.#torrent, piece)
    return this.#covered(piece)
      .map(({ begin, end }) => {
        const unit = Math.ceil(begin / unitBytes)
        return { unit, units: (end === sizeBytes ? Math.ceil(end / unitBytes) : Math.floor(end / unitBytes)) - unit }
      })
      .filter(({ units }) => units > 0)
  }

  /** What of the torrent is not fetched: its bytes that are there, in whole blocks. */
  wholeBlocksBytes(): number {
    let bytes = 0
    for (const piece of this.#stretches.keys()) {
      const sizeBytes = pieceSizeBytes(this.#torrent, piece)
      for (const { unit, units } of this.runs(piece, STANDARD_BLOCK_BYTES))
        bytes += Math.min(sizeBytes, (unit + units) * STANDARD_BLOCK_BYTES) - unit * STANDARD_BLOCK_BYTES
    }
    return bytes
  }

  /** Its stretches, those joined that follow each other. */
  #covered(piece: number): { begin: number; end: number }[] {
    const covered: { begin: number; end: number }[] = []
    for (const { begin, end } of this.#stretches.get(piece) ?? []) {
      const last = covered.at(-1)
      if (last?.end === begin) last.end = end
      else covered.push({ begin, end })
    }
    return covered
  }

  /**
   * Fills `into`, the piece's bytes from `begin` on, all of which have to be there.
   * @returns false when they can't be read; the piece is forgotten then
   */
  async read(piece: number, begin: number, into: Uint8Array): Promise<boolean> {
    try {
      for (const stretch of this.#stretches.get(piece) ?? []) {
        const first = Math.max(begin, stretch.begin)
        const end = Math.min(begin + into.length, stretch.end)
        if (first >= end) continue
        const from = stretch.from + first - stretch.begin
        await this.#releases[stretch.release]?.readAt(from, into.subarray(first - begin, end - begin))
      }
      return true
    } catch (error) {
      this.forget(piece, error)
      return false
    }
  }

  /** What there is of a piece is wrong, or can't be read: peers have it. */
  forget(piece: number, why: unknown): void {
    if (this.#stretches.delete(piece)) this.#fault(piece, why)
  }

  /** Bytes were of use. */
  took(sizeBytes: number): void {
    this.takenBytes += sizeBytes
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all(this.#releases.map((files) => files[Symbol.asyncDispose]()))
  }
}

/** Where a chunk is. */
interface Place {
  key: string
  release: number
  offset: number
  next?: Place
}

/** By their entries, the chunks of all releases. */
function index(releases: LocalRelease[]): Map<string, Place> {
  const places = new Map<string, Place>()
  for (const [release, { torrent }] of releases.entries()) {
    let before: Place | undefined
    for (const { offset, key } of readChunks(torrent.chunks ?? new Uint8Array())) {
      const place: Place = { key, release, offset }
      if (before) before.next = place
      if (!places.has(key)) places.set(key, place)
      before = place
    }
  }
  return places
}
