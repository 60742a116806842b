import { randomBytes } from 'node:crypto'
import { open, readdir, readFile, rename, rm, symlink } from 'node:fs/promises'
import { basename, dirname, join } from 'node:path'

/** What is renamed or created in this folder is on the disk when it returns. */
export async function syncFolder(dir: string): Promise<void> {
  const folder = await open(dir, 'r')
  try {
    await folder.sync()
  } finally {
    await folder.close()
  }
}

/** Replaces a file as a whole: after power loss it holds the old or the new bytes. */
export async function writeDurably(path: string, data: string | Uint8Array, mode = 0o600): Promise<void> {
  const temporary = `${path}.${randomBytes(4).toString('hex')}.new`
  try {
    const file = await open(temporary, 'wx', mode)
    try {
      await file.writeFile(data)
      await file.sync()
    } finally {
      await file.close()
    }
    await rename(temporary, path)
  } catch (error) {
    await rm(temporary, { force: true })
    throw error
  }
  await syncFolder(dirname(path))
}

/** The value of a JSON file; undefined when there is none. Throws on one that can't be read or parsed. */
export async function readJson(path: string): Promise<unknown> {
  const text = await readFile(path, 'utf8').catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'ENOENT') return undefined
    throw error
  })
  return text === undefined ? undefined : JSON.parse(text)
}

/** Points a symlink elsewhere; whoever looks sees the old or the new target, never none. */
export async function switchLink(link: string, target: string): Promise<void> {
  const temporary = `${link}.${randomBytes(4).toString('hex')}.new`
  await symlink(target, temporary)
  await rename(temporary, link)
  await syncFolder(dirname(link))
}

/** Removes what a crash left half-written beside `path`. */
export async function removeLeftovers(path: string): Promise<void> {
  const dir = dirname(path)
  for (const name of await readdir(dir))
    if (name.startsWith(`${basename(path)}.`) && name.endsWith('.new')) await rm(join(dir, name), { force: true })
}
