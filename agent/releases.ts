import { existsSync } from 'node:fs'
import { chmod, readdir, readFile, rm, stat, statfs, utimes } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { type Descriptor, parseDescriptor } from '../api/descriptor.ts'
import { ShoalError, Transient } from '../api/errors.ts'
import type { Template } from '../rollout/envelope.ts'
import { makeFolder } from '../swarm/disk.ts'
import type { LocalRelease } from '../swarm/localChunks.ts'
import { syncFolder, writeDurably } from './supervisor/durable.ts'

type Artifact = Template['artifact']

/** Left free beside a release, for the application itself. */
const spareBytes = 64 << 20
const descriptorFile = 'descriptor.torrent'

/** The folder of one release: `files/` is the artifact, `complete` says that all of it is there, verified and synced. */
export class Release {
  readonly dir: string
  readonly artifact: Artifact

  constructor(releasesDir: string, artifact: Artifact) {
    this.dir = join(releasesDir, releaseName(artifact))
    this.artifact = artifact
  }

  get files(): string {
    return join(this.dir, 'files')
  }

  get stateFile(): string {
    return join(this.dir, 'swarm.state')
  }

  get complete(): boolean {
    return existsSync(join(this.dir, 'complete'))
  }

  async create(): Promise<void> {
    await makeFolder(this.files, 0o755)
    await chmod(this.dir, 0o755)
    await syncFolder(dirname(this.dir))
  }

  /** The descriptor, from the disk or else by `fetch`; it must be the one the hub signed. */
  async descriptor(fetch: () => Promise<Uint8Array>): Promise<Descriptor> {
    const file = join(this.dir, descriptorFile)
    const kept = await readFile(file).catch(() => undefined)
    if (kept) {
      try {
        return this.#check(kept)
      } catch {
        // Damaged on disk: fetched again.
      }
    }
    const bytes = await fetch()
    const descriptor = this.#check(bytes)
    await this.create()
    await writeDurably(file, bytes)
    return descriptor
  }

  #check(bytes: Uint8Array): Descriptor {
    const descriptor = parseDescriptor(bytes)
    const { descriptorDigest, infoHash, sizeBytes } = this.artifact
    if (
      descriptor.digest !== descriptorDigest ||
      descriptor.infoHash !== infoHash ||
      descriptor.sizeBytes !== sizeBytes
    )
      throw new ShoalError('DescriptorInvalid', `the descriptor of ${this.artifact.name} is not the one the hub signed`)
    return descriptor
  }

  /** The complete releases beside it: most of it may be in them. */
  async others(): Promise<LocalRelease[]> {
    const dir = dirname(this.dir)
    const found: LocalRelease[] = []
    for (const name of await readdir(dir)) {
      const other = join(dir, name)
      if (other === this.dir || !existsSync(join(other, 'complete'))) continue
      try {
        const torrent = parseDescriptor(await readFile(join(other, descriptorFile)))
        found.push({ torrent, dir: join(other, 'files') })
      } catch {
        // Removed meanwhile, or damaged: then there is less to take.
      }
    }
    return found
  }

  /** Nothing in it changes any more; whole after power loss. */
  async finish(): Promise<void> {
    for (const entry of await readdir(this.files, { recursive: true, withFileTypes: true })) {
      if (!entry.isDirectory()) continue
      const folder = join(entry.parentPath, entry.name)
      await chmod(folder, 0o555)
      await syncFolder(folder)
    }
    await chmod(this.files, 0o555)
    await syncFolder(this.files)
    await syncFolder(this.dir)
    await writeDurably(join(this.dir, 'complete'), `${this.artifact.digest}\n`, 0o644)
  }

  /** From its descriptor to the last byte verified; undefined before. */
  async fetchMs(): Promise<number | undefined> {
    const at = (name: string) => stat(join(this.dir, name)).then(({ mtimeMs }) => mtimeMs)
    try {
      return Math.max(0, Math.round((await at('complete')) - (await at(descriptorFile))))
    } catch {
      return undefined
    }
  }

  /** Something in it is damaged or gone: it is to be fetched again before anything new starts from it. */
  async reopen(): Promise<void> {
    await rm(join(this.dir, 'complete'), { force: true })
    // it is fetched from now on
    const now = new Date()
    await utimes(join(this.dir, descriptorFile), now, now).catch(() => {})
    await syncFolder(this.dir)
  }

  /** Throws Transient `DiskFull` when what is missing won't fit. */
  async ensureSpace(): Promise<void> {
    const { bavail, bsize } = await statfs(this.dir)
    const missingBytes = Math.max(0, this.artifact.sizeBytes - (await allocatedBytes(this.files)))
    const freeBytes = bavail * bsize
    if (freeBytes < missingBytes + spareBytes)
      throw new Transient('DiskFull', `${missingBytes + spareBytes} bytes needed, ${freeBytes} free`)
  }
}

export const releaseName = (artifact: Artifact): string =>
  artifact.descriptorDigest.slice('sha256:'.length).slice(0, 16)

/** Removes every release but those named; returns what was removed. */
export async function removeReleases(releasesDir: string, keep: ReadonlySet<string>): Promise<string[]> {
  const removed = (await readdir(releasesDir)).filter((name) => !keep.has(name))
  for (const name of removed) {
    const dir = join(releasesDir, name)
    // Not complete before it is not whole.
    await rm(join(dir, 'complete'), { force: true })
    await makeWritable(dir)
    await rm(dir, { recursive: true, force: true })
  }
  return removed
}

async function makeWritable(dir: string): Promise<void> {
  await chmod(dir, 0o755)
  for (const entry of await readdir(dir, { withFileTypes: true }))
    if (entry.isDirectory()) await makeWritable(join(dir, entry.name))
}

async function allocatedBytes(dir: string): Promise<number> {
  let bytes = 0
  for (const entry of await readdir(dir, { recursive: true, withFileTypes: true }))
    if (entry.isFile()) bytes += (await stat(join(entry.parentPath, entry.name))).blocks * 512
  return bytes
}
