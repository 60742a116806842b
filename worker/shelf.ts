import { createHash, randomBytes } from 'node:crypto'
import { chmod, chown, lstat, mkdir, readdir, readFile, rename, rm, stat, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { Stalled } from '../api/errors.ts'
import type { Logger } from '../runtime/log.ts'
import { lockFolder } from './lock.ts'
import { diskUseBytes } from './usage.ts'
import { removeFolder } from './workspace.ts'

export interface ShelfOptions {
  /** Absolute; shared by the workers of a machine. */
  path: string
  /** Of all entries together. One that is larger than half of it is not kept. */
  maxBytes: number
  log: Logger
}

/** An entry that one job has for itself. Disposing puts it back. */
export interface Entry extends AsyncDisposable {
  /** Of root alone. */
  path: string
  /** Whether its last holder put it back. */
  isWhole: boolean
  empty(): Promise<void>
}

/** The bytes of an entry that was put back; when it was written is when the entry was last used. */
const sizeFile = 'bytes'
const removedPrefix = '.removed-'

/**
 * Folders that are kept between jobs, each for one holder at a time: those used least recently go when all together are
 * too large. An entry that nobody holds lets in nobody but root.
 */
export class Shelf {
  readonly #options: ShelfOptions

  private constructor(options: ShelfOptions) {
    this.#options = options
  }

  /** Throws Stalled `ConfigInvalid` when somebody else made the folder, or nothing can lock it. */
  static async open(options: ShelfOptions): Promise<Shelf> {
    const { path } = options
    const shelf = new Shelf(options)
    await shelf.#make()
    if ((await lstat(path)).uid !== process.getuid?.())
      throw new Stalled('ConfigInvalid', `${path} is not this worker’s: remove it`)
    using _ = await lockFolder(path, { waitMs: 0 }).catch((cause: unknown) => {
      throw new Stalled('ConfigInvalid', 'no flock: install util-linux, or keep no caches (SHOAL_CACHE_SIZE=0)', {
        cause,
      })
    })
    return shelf
  }

  /** Builds of other users pass through, to the entry that lets them in. It may be deleted at any time. */
  async #make(): Promise<void> {
    await mkdir(this.#options.path, { recursive: true })
    await chmod(this.#options.path, 0o711)
  }

  /** The name of an entry: nobody learns from it what is in it. */
  static key(kind: string, ...parts: string[]): string {
    return `${kind}-${createHash('sha256').update(JSON.stringify(parts)).digest('hex').slice(0, 32)}`
  }

  /** The entry, new or as it was put back; undefined when another holds it for longer than `waitMs`. */
  async take(key: string, { waitMs, signal }: { waitMs: number; signal?: AbortSignal }): Promise<Entry | undefined> {
    const path = join(this.#options.path, key)
    await this.#make()
    await mkdir(path, { mode: 0o700 }).catch(but('EEXIST'))
    const lock = await lockFolder(path, { waitMs, signal })
    if (!lock) return undefined
    const isWhole = (await readdir(path)).length === 0 || (await this.#sizeOf(key)) !== undefined
    await rm(join(path, sizeFile), { force: true })
    return {
      path,
      isWhole,
      empty: async () => {
        for (const name of await readdir(path)) await removeFolder(join(path, name), this.#options.log)
      },
      [Symbol.asyncDispose]: async () => {
        await this.#putBack(key)
        lock[Symbol.dispose]()
        await this.#makeRoom()
      },
    }
  }

  /** Removes an entry that turned out to be no good, unless somebody has it. */
  async drop(key: string): Promise<void> {
    using lock = await lockFolder(join(this.#options.path, key), { waitMs: 0 })
    if (lock) await this.#remove(key)
  }

  /** Closes what a worker that is gone had let its build's user into. Whoever has that uid now calls it first. */
  async close(uid: number): Promise<void> {
    for (const key of await readdir(this.#options.path)) {
      const path = join(this.#options.path, key)
      const { gid } = await stat(path).catch(() => ({ gid: 0 }))
      if (gid === uid) await close(path)
    }
    await this.#makeRoom()
  }

  /** No job fails because of what it leaves for others. */
  async #putBack(key: string): Promise<void> {
    const { path, maxBytes, log } = this.#options
    try {
      await close(join(path, key))
      const bytes = await diskUseBytes([join(path, key)], undefined)
      if (bytes > maxBytes / 2) await this.#remove(key)
      else await writeFile(join(path, key, sizeFile), String(bytes), { mode: 0o600 })
    } catch (error) {
      log.error({ err: error, key }, 'a cache was not put back')
    }
  }

  /** Removes what was used least recently, until the others are not too large together. */
  async #makeRoom(): Promise<void> {
    const { path, maxBytes, log } = this.#options
    try {
      const entries: { key: string; bytes: number; usedAt: number }[] = []
      for (const key of await readdir(path)) {
        if (key.startsWith(removedPrefix)) await removeFolder(join(path, key), log)
        else entries.push({ key, ...((await this.#sizeOf(key)) ?? (await this.#takeStock(key))) })
      }
      let bytes = entries.reduce((sum, entry) => sum + entry.bytes, 0)
      for (const entry of entries.sort((a, b) => a.usedAt - b.usedAt)) {
        if (bytes <= maxBytes) return
        await this.drop(entry.key)
        bytes -= entry.bytes
      }
    } catch (error) {
      log.error({ err: error }, 'caches were not looked through')
    }
  }

  /** When somebody has it, it counts once it is put back. */
  async #takeStock(key: string) {
    using lock = await lockFolder(join(this.#options.path, key), { waitMs: 0 })
    if (lock) await this.#putBack(key)
    return (await this.#sizeOf(key)) ?? { bytes: 0, usedAt: Date.now() }
  }

  async #sizeOf(key: string): Promise<{ bytes: number; usedAt: number } | undefined> {
    const file = join(this.#options.path, key, sizeFile)
    try {
      return { bytes: Number(await readFile(file, 'utf8')), usedAt: (await stat(file)).mtimeMs }
    } catch {
      return undefined
    }
  }

  /** By whoever holds its lock. */
  async #remove(key: string): Promise<void> {
    const removed = join(this.#options.path, `${removedPrefix}${randomBytes(6).toString('hex')}`)
    await rename(join(this.#options.path, key), removed)
    await removeFolder(removed, this.#options.log)
  }
}

async function close(path: string): Promise<void> {
  await chown(path, 0, 0)
  await chmod(path, 0o700)
}

/** What a promise rejects with is thrown, unless it has that code. */
function but(code: string) {
  return (error: NodeJS.ErrnoException) => {
    if (error.code !== code) throw error
  }
}
