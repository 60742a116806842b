import { pieceSizeBytes, type Torrent } from '../api/torrent.ts'
import { Bitfield } from './bitfield.ts'
import type { PieceBuffer, PieceBuffers } from './buffers.ts'
import { diskErrors } from './disk.ts'
import { type FilesMode, TorrentFiles } from './files.ts'
import type { Hasher } from './hasher.ts'
import { loadProgress, saveProgress } from './progress.ts'

const HASHES_AT_ONCE = 3

/**
 * An artifact's pieces on disk, and how far we trust them. A piece counts once it was verified and written; the state
 * file, if there is one, says so only after a sync. A piece trusted from a former process is verified once more when it is first read,
 * so that a bit that rotted is fetched again and never sent.
 */
export class PieceStore implements AsyncDisposable {
  readonly #torrent: Torrent
  readonly #files: TorrentFiles
  readonly #stateFile: string | undefined
  readonly #hasher: Hasher
  readonly #buffers: PieceBuffers
  /** Verified and written. */
  readonly pieces: Bitfield
  /** Verified by this process, not only by the state file's word. */
  readonly #seen: Bitfield
  #saving: Promise<void> = Promise.resolve()
  #unsaved = false
  /** Written since a save was last asked for. */
  unsavedBytes = 0

  private constructor(o: {
    torrent: Torrent
    files: TorrentFiles
    stateFile: string | undefined
    hasher: Hasher
    buffers: PieceBuffers
  }) {
    this.#torrent = o.torrent
    this.#files = o.files
    this.#stateFile = o.stateFile
    this.#hasher = o.hasher
    this.#buffers = o.buffers
    this.pieces = new Bitfield(o.torrent.pieceCount)
    this.#seen = new Bitfield(o.torrent.pieceCount)
  }

  static async open(o: {
    torrent: Torrent
    dir: string
    mode: FilesMode
    stateFile: string | undefined
    hasher: Hasher
    buffers: PieceBuffers
    signal?: AbortSignal | undefined
  }): Promise<PieceStore> {
    const files = await TorrentFiles.prepare(o.torrent, o.dir, o.mode)
    const store = new PieceStore({ ...o, files })
    try {
      await store.#resume(o.signal)
    } catch (error) {
      await files[Symbol.asyncDispose]()
      throw error
    }
    return store
  }

  /** Takes the state file's word for files nobody touched since, and hashes what is in the others. */
  async #resume(signal: AbortSignal | undefined): Promise<void> {
    const progress = this.#stateFile === undefined ? undefined : await loadProgress(this.#stateFile, this.#torrent)
    const changed = new Set<number>()
    for (const index of this.#files.existed)
      if (progress?.modifiedNs[index] !== this.#files.modifiedNs[index]) changed.add(index)
    const doubtful: number[] = []
    for (let index = 0; index < this.#torrent.pieceCount; index++) {
      const files = this.#files.filesOf(index)
      if (files.some((file) => changed.has(file))) doubtful.push(index)
      else if (progress?.pieces.has(index) && files.every((file) => this.#files.existed.has(file)))
        this.pieces.add(index)
    }
    const lanes = Array.from({ length: HASHES_AT_ONCE }, async () => {
      for (let index = doubtful.pop(); index !== undefined; index = doubtful.pop()) {
        signal?.throwIfAborted()
        const buffer = this.#buffers.acquire(this.#torrent.pieceLengthBytes)
        try {
          await this.#files.read(index, buffer.bytes)
          if (await this.verify(index, buffer)) this.#mark(index)
        } finally {
          this.#buffers.release(buffer)
        }
      }
    })
    await Promise.all(lanes)
  }

  #mark(index: number): void {
    this.pieces.add(index)
    this.#seen.add(index)
    this.#unsaved = true
  }

  /** Whether the buffer holds this piece. */
  async verify(index: number, buffer: PieceBuffer): Promise<boolean> {
    const { pieceSha256, pieceSha1 } = this.#torrent
    const digest = await this.#hasher.hash(
      pieceSha256 ? 'sha256' : 'sha1',
      buffer,
      pieceSizeBytes(this.#torrent, index),
    )
    const at = index * digest.length
    return Buffer.from((pieceSha256 ?? pieceSha1).subarray(at, at + digest.length)).equals(digest)
  }

  /** Writes a piece that was verified. @throws as `diskErrors`. */
  async write(index: number, buffer: PieceBuffer): Promise<void> {
    const sizeBytes = pieceSizeBytes(this.#torrent, index)
    await this.#files.write(index, buffer.bytes.subarray(0, sizeBytes))
    this.unsavedBytes += sizeBytes
    this.#mark(index)
  }

  /** Whether this process has had it in its hands, right: what is read of it is not hashed again. */
  saw(index: number): boolean {
    return this.#seen.has(index)
  }

  /** Reads a piece we have, held once for the caller; undefined when it is damaged, and no longer counted then. */
  async read(index: number): Promise<PieceBuffer | undefined> {
    const buffer = await this.readPart(index, 0, pieceSizeBytes(this.#torrent, index))
    if (!buffer) return undefined
    if (this.#seen.has(index) || (await this.verify(index, buffer))) {
      this.#seen.add(index)
      return buffer
    }
    this.#buffers.release(buffer)
    this.#lose(index)
    return undefined
  }

  /** As `read`, but a part of the piece, and as it is on disk. */
  async readPart(index: number, begin: number, sizeBytes: number): Promise<PieceBuffer | undefined> {
    const buffer = this.#buffers.acquire(sizeBytes)
    try {
      const position = index * this.#torrent.pieceLengthBytes + begin
      await this.#files.readAt(position, buffer.bytes.subarray(0, sizeBytes))
      return buffer
    } catch (error) {
      this.#buffers.release(buffer)
      if ((error as NodeJS.ErrnoException).code === 'EMFILE') throw error
      this.#lose(index)
      return undefined
    }
  }

  #lose(index: number): void {
    this.pieces.remove(index)
    this.#seen.remove(index)
    this.#unsaved = true
  }

  /** Syncs the data, then records it. Calls line up. */
  save(): Promise<void> {
    this.unsavedBytes = 0
    const next = this.#saving.catch(() => {}).then(() => this.#saveOnce())
    this.#saving = next
    return next
  }

  async #saveOnce(): Promise<void> {
    if (!this.#unsaved) return
    const stateFile = this.#stateFile
    this.#unsaved = false
    // the bits as they are before the sync: what is written during it is not promised
    const pieces = new Bitfield(this.pieces.size)
    for (let i = 0; i < pieces.size; i++) if (this.pieces.has(i)) pieces.add(i)
    try {
      await this.#files.sync()
      if (stateFile !== undefined)
        await diskErrors(() => saveProgress(stateFile, this.#torrent, { pieces, modifiedNs: this.#files.modifiedNs }))
    } catch (error) {
      this.#unsaved = true
      throw error
    }
  }

  /** Everything is there: on disk, recorded, and no longer writable by mode. */
  async finish(): Promise<void> {
    await this.save()
    await this.#files.protect()
  }

  async [Symbol.asyncDispose](): Promise<void> {
    try {
      await this.save()
    } finally {
      await this.#files[Symbol.asyncDispose]()
    }
  }
}
