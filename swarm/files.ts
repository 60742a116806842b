import { constants } from 'node:fs'
import { chmod, type FileHandle, lstat, open, readlink, rm, stat, symlink } from 'node:fs/promises'
import { dirname, join, relative } from 'node:path'
import { ShoalError } from '../api/errors.ts'
import { pieceSizeBytes, type Torrent, type TorrentFile } from '../api/torrent.ts'
import { diskErrors, makeFolder } from './disk.ts'

const MAX_OPEN = 128
const { O_RDONLY, O_RDWR, O_WRONLY, O_CREAT, O_NOFOLLOW } = constants
/** Not on every system. */
const O_DIRECT: number | undefined = constants.O_DIRECT
/** What direct writes are aligned to, in the file and in memory. */
const PAGE_BYTES = 4096

/**
 * `release`: created, filled, and read-only by mode once whole. `download`: the same, but modes stay. `seed`: there
 * already, never created or written.
 */
export type FilesMode = 'release' | 'download' | 'seed'

interface OpenFile {
  handle: Promise<FileHandle>
  /** For writing past the page cache; opened with the first page-aligned write. */
  direct?: Promise<FileHandle>
  uses: number
  /** Called when the last use ends; then the file is closed. */
  retired?: () => void
}

/** What of a stretch of the blob is inside one file. */
interface Extent {
  fileIndex: number
  fileOffset: number
  /** In the stretch. */
  offset: number
  sizeBytes: number
}

/**
 * A release folder being filled: files at their full size from the start (sparse), pieces written straight into their
 * places. Links and modes come from the torrent, whose paths were checked when it was parsed.
 */
export class TorrentFiles implements AsyncDisposable {
  readonly #torrent: Torrent
  readonly #dir: string
  readonly #mode: FilesMode
  /** Where each file begins in the blob. */
  readonly #starts: Float64Array
  readonly #open = new Map<number, OpenFile>()
  readonly #dirty = new Set<number>()
  #protected = false
  #directWorks = O_DIRECT !== undefined
  /** When each file was last changed (ns), as of the last sync; what else changes it shows. */
  readonly modifiedNs: BigUint64Array
  /** Files that held something before we came. */
  readonly existed = new Set<number>()

  private constructor(torrent: Torrent, dir: string, mode: FilesMode) {
    this.#torrent = torrent
    this.#dir = dir
    this.#mode = mode
    this.#protected = mode === 'seed'
    this.#starts = new Float64Array(torrent.files.length)
    this.modifiedNs = new BigUint64Array(torrent.files.length)
    let start = 0
    torrent.files.forEach((file, i) => {
      this.#starts[i] = start
      start += file.sizeBytes
    })
  }

  /** Creates what is missing. @throws as `diskErrors`; ShoalError `NotFound` in mode `seed`. */
  static async prepare(torrent: Torrent, dir: string, mode: FilesMode): Promise<TorrentFiles> {
    const files = new TorrentFiles(torrent, dir, mode)
    if (mode !== 'seed')
      for (const folder of new Set(torrent.files.map((file) => (file.padding ? '.' : dirname(file.path)))))
        await diskErrors(() => makeFolder(join(dir, folder)))
    for (const [index, file] of torrent.files.entries()) {
      if (file.padding) continue
      if (mode === 'seed') await files.#find(index, file)
      else await diskErrors(() => (file.symlink === undefined ? files.#create(index, file) : files.#link(file)))
    }
    return files
  }

  /** To be read only; nobody looks whether its files are there. */
  static assume(torrent: Torrent, dir: string): TorrentFiles {
    return new TorrentFiles(torrent, dir, 'seed')
  }

  async #find(index: number, file: TorrentFile): Promise<void> {
    if (file.symlink !== undefined) return
    const path = join(this.#dir, file.path)
    const stats = await stat(path, { bigint: true }).catch(() => undefined)
    if (!stats?.isFile() || stats.size !== BigInt(file.sizeBytes))
      throw new ShoalError('NotFound', `There is no file ${path} of ${file.sizeBytes} bytes.`)
    this.modifiedNs[index] = stats.mtimeNs
    this.existed.add(index)
  }

  async #create(index: number, file: TorrentFile): Promise<void> {
    const path = join(this.#dir, file.path)
    const before = await lstat(path, { bigint: true }).catch(() => undefined)
    // Protected by a former process: whole, and maybe running, when opening it for writing would fail (ETXTBSY).
    if (before?.isFile() && before.size === BigInt(file.sizeBytes) && (before.mode & 0o222n) === 0n) {
      this.#protected = true
      this.modifiedNs[index] = before.mtimeNs
      if (before.blocks > 0n) this.existed.add(index)
      return
    }
    if (before && !before.isFile()) await rm(path, { recursive: true, force: true })
    else if (before) await chmod(path, file.executable ? 0o755 : 0o644)
    await using handle = await open(path, O_RDWR | O_CREAT | O_NOFOLLOW, file.executable ? 0o755 : 0o644)
    if (before?.isFile() && before.size === BigInt(file.sizeBytes)) {
      this.modifiedNs[index] = before.mtimeNs
      if (before.blocks > 0n) this.existed.add(index)
      return
    }
    if (before?.isFile() && before.blocks > 0n) this.existed.add(index)
    await handle.truncate(file.sizeBytes)
    this.modifiedNs[index] = 0n
    this.#dirty.add(index)
  }

  async #link(file: TorrentFile): Promise<void> {
    const path = join(this.#dir, file.path)
    const text = relative(dirname(path), join(this.#dir, file.symlink ?? '')) || '.'
    if ((await readlink(path).catch(() => undefined)) === text) return
    await rm(path, { recursive: true, force: true })
    await symlink(text, path)
  }

  /** The files that hold a piece's bytes. */
  filesOf(pieceIndex: number): number[] {
    const indexes = this.#extentsOf(pieceIndex).map((extent) => extent.fileIndex)
    return indexes.filter((index) => !this.#torrent.files[index]?.padding)
  }

  /** Fills the first bytes of `into` with the piece. @throws when a file is gone or shorter than it was made. */
  read(pieceIndex: number, into: Uint8Array): Promise<void> {
    const sizeBytes = pieceSizeBytes(this.#torrent, pieceIndex)
    return this.readAt(pieceIndex * this.#torrent.pieceLengthBytes, into.subarray(0, sizeBytes))
  }

  /** Fills `into` from this byte of the blob on. @throws as `read`. */
  async readAt(position: number, into: Uint8Array): Promise<void> {
    for (const { fileIndex, fileOffset, offset, sizeBytes } of this.#extents(position, into.length)) {
      if (this.#torrent.files[fileIndex]?.padding) into.fill(0, offset, offset + sizeBytes)
      else
        await this.#with(fileIndex, async (handle) => {
          for (let done = 0; done < sizeBytes; ) {
            const { bytesRead } = await handle.read(into, offset + done, sizeBytes - done, fileOffset + done)
            if (bytesRead === 0) throw new ShoalError('NotFound', `${this.#path(fileIndex)} is shorter than it was.`)
            done += bytesRead
          }
        })
    }
  }

  /**
   * Whole pages go straight to the disk: half the CPU of a write through the page cache, and what the application keeps
   * there stays. @throws as `diskErrors`.
   */
  async write(pieceIndex: number, from: Uint8Array): Promise<void> {
    if (this.#mode === 'seed') throw new ShoalError('Conflict', `${this.#dir} is seeded from and not written to.`)
    if (this.#protected) await this.#protect(false)
    for (const { fileIndex, fileOffset, offset, sizeBytes } of this.#extentsOf(pieceIndex)) {
      if (this.#torrent.files[fileIndex]?.padding) continue
      const bytes = from.subarray(offset, offset + sizeBytes)
      await this.#with(fileIndex, async (handle, file) => {
        const pages = sizeBytes - (sizeBytes % PAGE_BYTES)
        const aligned = pages > 0 && fileOffset % PAGE_BYTES === 0 && bytes.byteOffset % PAGE_BYTES === 0
        let done = aligned
          ? await this.#writeDirect(file, fileIndex, { bytes: bytes.subarray(0, pages), fileOffset })
          : 0
        while (done < sizeBytes) {
          const { bytesWritten } = await diskErrors(() =>
            handle.write(bytes, done, sizeBytes - done, fileOffset + done),
          )
          done += bytesWritten
        }
      })
      this.#dirty.add(fileIndex)
    }
  }

  /** How much of it was written: all, or nothing where the file system or the memory is not fit for it. */
  async #writeDirect(
    file: OpenFile,
    fileIndex: number,
    { bytes, fileOffset }: { bytes: Uint8Array; fileOffset: number },
  ): Promise<number> {
    if (!this.#directWorks) return 0
    try {
      file.direct ??= open(join(this.#dir, this.#path(fileIndex)), O_WRONLY | O_NOFOLLOW | (O_DIRECT ?? 0))
      const handle = await file.direct
      const { bytesWritten } = await diskErrors(() => handle.write(bytes, 0, bytes.length, fileOffset))
      return bytesWritten
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EINVAL') throw error
      this.#directWorks = false
      return 0
    }
  }

  /** What was written before this call is on the disk when it returns. */
  async sync(): Promise<void> {
    const dirty = [...this.#dirty]
    this.#dirty.clear()
    for (const index of dirty) {
      try {
        await this.#with(index, async (handle) => {
          await diskErrors(() => handle.datasync())
          this.modifiedNs[index] = (await handle.stat({ bigint: true })).mtimeNs
        })
      } catch (error) {
        for (const left of dirty) this.#dirty.add(left)
        throw error
      }
    }
  }

  /**
   * In mode `release`, takes the right to write from every file: nothing changes a release that is whole. Files are reopened for reading
   * alone, for Linux starts no program that someone has open for writing (ETXTBSY).
   */
  async protect(): Promise<void> {
    if (this.#mode === 'release') await this.#protect(true)
  }

  async #protect(on: boolean): Promise<void> {
    this.#protected = on
    for (const file of this.#torrent.files) {
      const bits = (file.executable ? 0o111 : 0) | (on ? 0o444 : 0o644)
      if (file.symlink === undefined && !file.padding) await chmod(join(this.#dir, file.path), bits)
    }
    await this.#closeAll()
  }

  #path(fileIndex: number): string {
    return this.#torrent.files[fileIndex]?.path ?? ''
  }

  #extentsOf(pieceIndex: number): Extent[] {
    const begin = pieceIndex * this.#torrent.pieceLengthBytes
    return this.#extents(begin, pieceSizeBytes(this.#torrent, pieceIndex))
  }

  #extents(begin: number, lengthBytes: number): Extent[] {
    const extents: Extent[] = []
    const end = begin + lengthBytes
    let position = begin
    for (let i = this.#fileAt(position); position < end; i++) {
      const fileOffset = position - (this.#starts[i] ?? 0)
      const sizeBytes = Math.min(end - position, (this.#torrent.files[i]?.sizeBytes ?? 0) - fileOffset)
      if (sizeBytes > 0) extents.push({ fileIndex: i, fileOffset, offset: position - begin, sizeBytes })
      position += sizeBytes
    }
    return extents
  }

  /** The last file that begins at or before `position`. */
  #fileAt(position: number): number {
    let low = 0
    let high = this.#starts.length - 1
    while (low < high) {
      const middle = (low + high + 1) >> 1
      if ((this.#starts[middle] ?? 0) <= position) low = middle
      else high = middle - 1
    }
    return low
  }

  /** An artifact may have more files than a process may open: the least used are closed. */
  async #with<T>(index: number, use: (handle: FileHandle, file: OpenFile) => Promise<T>): Promise<T> {
    let file = this.#open.get(index)
    if (!file) {
      const mode = this.#protected ? O_RDONLY : O_RDWR
      const handle = open(join(this.#dir, this.#path(index)), mode | O_NOFOLLOW)
      file = { handle, uses: 0 }
      handle.catch(() => this.#open.delete(index))
    }
    this.#open.delete(index)
    this.#open.set(index, file)
    file.uses++
    try {
      return await use(await file.handle, file)
    } finally {
      if (--file.uses === 0) file.retired?.()
      for (const [other, idle] of this.#open) {
        if (this.#open.size <= MAX_OPEN) break
        if (idle.uses > 0) continue
        this.#open.delete(other)
        await close(idle)
      }
    }
  }

  /** Waits for those in use. */
  async #closeAll(): Promise<void> {
    const files = [...this.#open.values()]
    this.#open.clear()
    for (const file of files) {
      if (file.uses > 0)
        await new Promise<void>((resolve) => {
          file.retired = resolve
        })
      await close(file)
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#closeAll()
  }
}

async function close({ handle, direct }: OpenFile): Promise<void> {
  for (const open of [handle, direct]) await open?.then((each) => each.close()).catch(() => {})
}
