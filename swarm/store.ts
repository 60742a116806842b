import { type Descriptor, pieceSizeBytes } from '../api/descriptor.ts'
import { Bitfield } from './bitfield.ts'
import type { PieceBuffer, PieceBuffers } from './buffers.ts'
import { ReleaseFiles } from './files.ts'
import type { Hasher } from './hasher.ts'
import { loadProgress, saveProgress } from './progress.ts'

const HASHES_AT_ONCE = 3

/**
 * An artifact's pieces on disk, and how far we trust them. A piece counts once it was verified and written; the state
 * file says so only after a sync. A piece trusted from a former process is verified once more when it is first read,
 * so that a bit that rotted is fetched again and never sent.
 */
export class PieceStore implements AsyncDisposable {
  readonly #descriptor: Descriptor
  readonly #files: ReleaseFiles
  readonly #stateFile: string
  readonly #hasher: Hasher
  readonly #buffers: PieceBuffers
  /** Verified and written. */
  readonly pieces: Bitfield
  /** Verified by this process, not only by the state file's word. */
  readonly #seen: Bitfield
  #saving: Promise<void> = Promise.resolve()
  #unsaved = false

  private constructor(o: {
    descriptor: Descriptor
    files: ReleaseFiles
    stateFile: string
    hasher: Hasher
    buffers: PieceBuffers
  }) {
    this.#descriptor = o.descriptor
    this.#files = o.files
    this.#stateFile = o.stateFile
    this.#hasher = o.hasher
    this.#buffers = o.buffers
    this.pieces = new Bitfield(o.descriptor.pieceCount)
    this.#seen = new Bitfield(o.descriptor.pieceCount)
  }

  static async open(o: {
    descriptor: Descriptor
    dir: string
    stateFile: string
    hasher: Hasher
    buffers: PieceBuffers
    signal?: AbortSignal | undefined
  }): Promise<PieceStore> {
    const files = await ReleaseFiles.prepare(o.descriptor, o.dir)
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
    const progress = await loadProgress(this.#stateFile, this.#descriptor)
    const changed = new Set<number>()
    for (const index of this.#files.existed)
      if (progress?.modifiedNs[index] !== this.#files.modifiedNs[index]) changed.add(index)
    const doubtful: number[] = []
    for (let index = 0; index < this.#descriptor.pieceCount; index++) {
      const files = this.#files.filesOf(index)
      if (files.some((file) => changed.has(file))) doubtful.push(index)
      else if (progress?.pieces.has(index) && files.every((file) => this.#files.existed.has(file)))
        this.pieces.add(index)
    }
    const lanes = Array.from({ length: HASHES_AT_ONCE }, async () => {
      for (let index = doubtful.pop(); index !== undefined; index = doubtful.pop()) {
        signal?.throwIfAborted()
        const buffer = this.#buffers.acquire(this.#descriptor.pieceLengthBytes)
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
    const digest = await this.#hasher.sha256(buffer, pieceSizeBytes(this.#descriptor, index))
    return Buffer.from(this.#descriptor.pieceSha256.subarray(index * 32, index * 32 + 32)).equals(digest)
  }

  /** Writes a piece that was verified. @throws Transient `DiskFull`. */
  async write(index: number, buffer: PieceBuffer): Promise<void> {
    await this.#files.write(index, buffer.bytes.subarray(0, pieceSizeBytes(this.#descriptor, index)))
    this.#mark(index)
  }

  /** Reads a piece we have, held once for the caller; undefined when it is damaged, and no longer counted then. */
  async read(index: number): Promise<PieceBuffer | undefined> {
    const buffer = this.#buffers.acquire(this.#descriptor.pieceLengthBytes)
    try {
      await this.#files.read(index, buffer.bytes)
      if (this.#seen.has(index) || (await this.verify(index, buffer))) {
        this.#seen.add(index)
        return buffer
      }
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === 'EMFILE') throw error
    }
    this.#buffers.release(buffer)
    this.pieces.remove(index)
    this.#seen.remove(index)
    this.#unsaved = true
    return undefined
  }

  /** Syncs the data, then records it. Calls line up. */
  save(): Promise<void> {
    const next = this.#saving.catch(() => {}).then(() => this.#saveOnce())
    this.#saving = next
    return next
  }

  async #saveOnce(): Promise<void> {
    if (!this.#unsaved) return
    this.#unsaved = false
    // the bits as they are before the sync: what is written during it is not promised
    const pieces = new Bitfield(this.pieces.size)
    for (let i = 0; i < pieces.size; i++) if (this.pieces.has(i)) pieces.add(i)
    try {
      await this.#files.sync()
      await saveProgress(this.#stateFile, this.#descriptor, { pieces, modifiedNs: this.#files.modifiedNs })
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
