import { execFile } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { readFileSync, readlinkSync } from 'node:fs'
import { chmod, chown, mkdir, readdir, readFile, stat, writeFile } from 'node:fs/promises'
import { hostname } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { Stalled } from '../api/errors.ts'
import type { Logger } from '../runtime/log.ts'

const run = promisify(execFile)

/** What one job has for itself. */
export interface JobFolder extends AsyncDisposable {
  /** All of it. */
  path: string
  checkout: string
  /** The build's HOME. */
  home: string
  /** Its TMPDIR. */
  temporary: string
  /** Its SHOAL_CACHE, where it has no other. */
  cache: string
}

const prefix = 'shoal-'
const ownerFile = 'owner.json'

/** One process' folder below a workspace that several share. */
export class Workspace implements AsyncDisposable {
  readonly path: string
  readonly #parent: string
  readonly #log: Logger

  private constructor(path: string, parent: string, log: Logger) {
    this.path = path
    this.#parent = parent
    this.#log = log
  }

  /** Throws Stalled `ConfigInvalid` when the parent is one for everybody. */
  static async open(parent: string, log: Logger): Promise<Workspace> {
    await mkdir(parent, { recursive: true, mode: 0o711 })
    if (process.getuid?.() === 0) await closeToWriters(parent)
    const path = join(parent, `${prefix}${process.pid}-${randomBytes(4).toString('hex')}`)
    await mkdir(path)
    await writeFile(join(path, ownerFile), JSON.stringify(identify()), { mode: 0o600 })
    // Builds of other users pass through; only their own folder lets them in.
    await chmod(path, 0o711)
    return new Workspace(path, parent, log)
  }

  /**
   * Removes what processes of this host left that are gone; containers that share a workspace must have host names of
   * their own. To be called by whoever has taken a uid, which may be that of a build whose files are among it.
   */
  async removeAbandoned(): Promise<void> {
    for (const name of await readdir(this.#parent)) {
      const path = join(this.#parent, name)
      if (name.startsWith(prefix) && (await isAbandoned(path))) await removeFolder(path, this.#log)
    }
  }

  /** A fresh folder for a job, for this user's eyes only. */
  async job(uid: number | undefined): Promise<JobFolder> {
    const folder = join(this.path, randomBytes(6).toString('hex'))
    await mkdir(folder)
    if (uid !== undefined) await chown(folder, 0, uid)
    await chmod(folder, uid === undefined ? 0o700 : 0o710)
    const [checkout = '', home = '', temporary = '', cache = ''] = ['checkout', 'home', 'tmp', 'cache'].map((it) =>
      join(folder, it),
    )
    const parts = { checkout, home, temporary, cache }
    for (const part of Object.values(parts)) {
      await mkdir(part, { mode: 0o700 })
      if (uid !== undefined) await chown(part, uid, uid)
    }
    return { path: folder, ...parts, [Symbol.asyncDispose]: () => removeFolder(folder, this.#log) }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await removeFolder(this.path, this.#log)
  }
}

/** A volume may come open to everybody, who could then move what is in it; a folder like /tmp is to stay as it is. */
async function closeToWriters(folder: string): Promise<void> {
  const { mode } = await stat(folder)
  if (mode & 0o1000) throw new Stalled('ConfigInvalid', `everybody may write to ${folder}: name a folder of its own`)
  if (mode & 0o022) await chmod(folder, 0o711)
}

/** Gives everything below to the user; symlinks themselves, not what they point to. */
export async function giveTo(folder: string, uid: number): Promise<void> {
  await run('chown', ['-R', '-h', '--', `${uid}:${uid}`, folder])
}

/** With rm, which goes as deep as builds do; folders that their owner made read-only are opened first. */
export async function removeFolder(folder: string, log: Logger): Promise<void> {
  try {
    await run('rm', ['-rf', '--', folder]).catch(async () => {
      await run('chmod', ['-R', 'u+rwX', '--', folder]).catch(() => undefined)
      await run('rm', ['-rf', '--', folder])
    })
  } catch (error) {
    log.error({ err: error }, 'a folder was not removed')
  }
}

interface Owner {
  host: string
  boot: string
  /** Of the process ids: another container counts its own. */
  namespace: string
  pid: number
  /** Field 22 of /proc/<pid>/stat. */
  started: string
}

const identify = (): Owner => ({
  host: hostname(),
  boot: readFileSync('/proc/sys/kernel/random/boot_id', 'utf8').trim(),
  namespace: readlinkSync('/proc/self/ns/pid'),
  pid: process.pid,
  started: startOf(process.pid) ?? '',
})

async function isAbandoned(folder: string): Promise<boolean> {
  let owner: Owner
  try {
    owner = JSON.parse(await readFile(join(folder, ownerFile), 'utf8'))
  } catch {
    return false
  }
  const self = identify()
  if (owner.host !== self.host) return false
  return owner.boot !== self.boot || owner.namespace !== self.namespace || startOf(owner.pid) !== owner.started
}

function startOf(pid: number): string | undefined {
  try {
    return readFileSync(`/proc/${pid}/stat`, 'utf8').split(') ').at(-1)?.split(' ')[19]
  } catch {
    return undefined
  }
}
