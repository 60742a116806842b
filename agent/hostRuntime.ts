import { execFile } from 'node:child_process'
import { createHash } from 'node:crypto'
import { cp, mkdir, readdir, readFile, rename, rm, stat } from 'node:fs/promises'
import { basename, join } from 'node:path'
import { promisify } from 'node:util'
import { syncFolder } from './supervisor/durable.ts'

const run = promisify(execFile)

/**
 * Installs what a supervisor needs into a folder of the host, named by its content, and returns the command line that
 * runs it: Node through its own loader with its own libraries, for the host's may be of another age or not there.
 */
export async function hostRuntime(runtimesDir: string, sources: string): Promise<string[]> {
  const { size, mtimeMs } = await stat(process.execPath)
  const digest = createHash('sha256').update(`${process.version} ${process.arch} ${size} ${mtimeMs}`)
  const names = (await readdir(sources)).filter((name) => name.endsWith('.ts') && !name.endsWith('.test.ts')).sort()
  for (const name of names) digest.update(await readFile(join(sources, name)))
  const dir = join(runtimesDir, digest.digest('hex').slice(0, 16))
  const libraries = await sharedLibraries(process.execPath)
  if (!(await stat(dir).catch(() => undefined))) {
    const temporary = `${dir}.${process.pid}.new`
    await rm(temporary, { recursive: true, force: true })
    await mkdir(join(temporary, 'lib'), { recursive: true })
    await mkdir(join(temporary, 'supervisor'))
    await cp(process.execPath, join(temporary, 'node'), { dereference: true })
    for (const path of libraries) await cp(path, join(temporary, 'lib', basename(path)), { dereference: true })
    for (const name of names) await cp(join(sources, name), join(temporary, 'supervisor', name), { dereference: true })
    // Node takes the .ts files for modules by this.
    await cp(join(sources, '..', '..', 'package.json'), join(temporary, 'package.json'), { dereference: true })
    await rename(temporary, dir)
    await syncFolder(runtimesDir)
  }
  const loader = libraries.find((path) => /^ld-(linux|musl)/.test(basename(path)))
  const node = join(dir, 'node')
  const main = join(dir, 'supervisor', 'main.ts')
  if (loader === undefined) return [node, main]
  const lib = join(dir, 'lib')
  return [join(lib, basename(loader)), '--library-path', lib, node, main]
}

/** As `ldd` lists them, the loader too. Where there is no ldd, the loader itself knows. */
async function sharedLibraries(program: string): Promise<string[]> {
  const loaders = ['/lib64/ld-linux-x86-64.so.2', '/lib/ld-linux-aarch64.so.1']
  for (const loader of loaders) {
    const listed = await run(loader, ['--list', program]).catch(() => undefined)
    if (!listed) continue
    const paths = [...listed.stdout.matchAll(/(?:=>\s*)?(\/\S+)\s+\(0x/g)].map(([, path = '']) => path)
    return [...new Set([...paths, loader])]
  }
  return []
}
