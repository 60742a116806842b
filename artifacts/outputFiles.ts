import type { Stats } from 'node:fs'
import { lstat, readdir, readlink, realpath } from 'node:fs/promises'
import { basename, join, relative, sep } from 'node:path'
import { symlinkFromRoot } from '../api/descriptor.ts'
import { Stalled } from '../api/errors.ts'
import { comparePaths, type TorrentFile } from '../api/torrent.ts'

export interface OutputFile extends TorrentFile {
  /** Where it is on this disk. */
  absolute: string
}

const MAX_FILES = 500_000

/**
 * The files of a build's output, in the order of the blob: the file itself by its base name, or what is below the
 * folder. Empty folders are not carried.
 *
 * @param within the real path of `path` must be inside this folder
 * @throws Stalled `OutputMissing` (nothing there, or nothing in it), `OutputOutside` (it or a symlink in it leaves),
 *   `Invalid` (sockets, devices, names that aren't UTF-8, too many files)
 */
export async function listOutput(path: string, within?: string): Promise<OutputFile[]> {
  const root = await resolve(path, within)
  const found: OutputFile[] = []
  const stats = await lstat(root)
  if (stats.isDirectory()) await walk(root, '', found)
  else found.push(regularFile(basename(path), root, stats))
  if (!found.some((file) => file.sizeBytes > 0)) throw new Stalled('OutputMissing', 'The build’s output is empty.')
  return found.sort((a, b) => comparePaths(a.path, b.path))
}

async function resolve(path: string, within: string | undefined): Promise<string> {
  try {
    const real = await realpath(path)
    if (within === undefined) return real
    const inside = relative(await realpath(within), real)
    if (inside === '..' || inside.startsWith(`..${sep}`))
      throw new Stalled('OutputOutside', 'The build’s output is outside the workspace.')
    return real
  } catch (error) {
    if (error instanceof Stalled) throw error
    throw new Stalled('OutputMissing', 'The build left nothing at its output path.', { cause: error })
  }
}

async function walk(folder: string, prefix: string, found: OutputFile[]): Promise<void> {
  for (const rawName of await readdir(folder, { encoding: 'buffer' })) {
    const name = decode(rawName, prefix)
    const path = prefix === '' ? name : `${prefix}/${name}`
    const absolute = join(folder, name)
    const stats = await lstat(absolute)
    if (stats.isDirectory()) await walk(absolute, path, found)
    else if (stats.isSymbolicLink()) found.push(await symlink(path, absolute))
    else found.push(regularFile(path, absolute, stats))
    if (found.length > MAX_FILES) throw new Stalled('Invalid', `The build’s output has more than ${MAX_FILES} files.`)
  }
}

function regularFile(path: string, absolute: string, stats: Stats): OutputFile {
  if (!stats.isFile())
    throw new Stalled('Invalid', `${JSON.stringify(path)} in the build’s output is neither file, folder nor symlink.`)
  return { path, absolute, sizeBytes: stats.size, executable: (stats.mode & 0o111) !== 0 }
}

async function symlink(path: string, absolute: string): Promise<OutputFile> {
  const text = await readlink(absolute)
  const target = climbs(text) ? undefined : symlinkFromRoot(path, text)
  if (target === undefined)
    throw new Stalled('OutputOutside', `The symlink ${JSON.stringify(path)} in the build’s output leaves it.`)
  return { path, absolute, sizeBytes: 0, executable: false, symlink: target }
}

/** `..` after a name: the name may be a symlink itself, so only the file system knows where that leads. */
function climbs(text: string): boolean {
  const named = text.split('/').filter((segment) => segment !== '' && segment !== '.')
  const firstName = named.findIndex((segment) => segment !== '..')
  return firstName >= 0 && named.indexOf('..', firstName) >= 0
}

function decode(name: Uint8Array, folder: string): string {
  try {
    return new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(name)
  } catch (error) {
    throw new Stalled('Invalid', `A file name in ${JSON.stringify(folder || '.')} is not UTF-8.`, { cause: error })
  }
}
