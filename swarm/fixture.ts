/** For the tests of this folder: artifacts of random bytes, nodes that close themselves, and waiting. */
import { hash, randomBytes } from 'node:crypto'
import { chmod, mkdir, mkdtemp, readFile, readlink, rm, symlink, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import * as assert from 'uvu/assert'
import { type Descriptor, encodeDescriptor, parseDescriptor } from '../api/descriptor.ts'
import { comparePaths, type TorrentFile } from '../api/torrent.ts'
import { patience } from '../hack/parts/process.ts'
import { SwarmNode } from './node.ts'
import type { Swarm, SwarmOptions } from './swarm.ts'

export interface Sample {
  descriptor: Descriptor
  torrent: Uint8Array
  blob: Buffer
}

/** An artifact with these files, of random bytes; a string instead of a size is a symlink's target. */
export function sampleArtifact(files: Record<string, number | string>, pieceLengthBytes: number): Sample {
  const contents = Object.entries(files).map(([path, content]): [string, Buffer | string] => [
    path,
    typeof content === 'string' ? content : randomBytes(content),
  ])
  return sampleOf(Object.fromEntries(contents), pieceLengthBytes)
}

/** The same of these bytes; `listChunks` makes the list of chunks of its files. */
export function sampleOf(
  files: Record<string, Buffer | string>,
  pieceLengthBytes: number,
  listChunks?: (contents: Buffer[]) => Uint8Array,
): Sample {
  const sorted = Object.entries(files).sort(([a], [b]) => comparePaths(a, b))
  const entries = sorted.map(
    ([path, content]): TorrentFile =>
      typeof content === 'string'
        ? { path, sizeBytes: 0, executable: false, symlink: content }
        : { path, sizeBytes: content.length, executable: path.startsWith('bin/') },
  )
  const contents = sorted.flatMap(([, content]) => (typeof content === 'string' ? [] : [content]))
  const blob = Buffer.concat(contents)
  const pieces: Buffer[] = []
  for (let at = 0; at < blob.length; at += pieceLengthBytes) pieces.push(blob.subarray(at, at + pieceLengthBytes))
  const torrent = encodeDescriptor({
    name: 'sample',
    pieceLengthBytes,
    files: entries,
    pieceSha1: Buffer.concat(pieces.map((piece) => hash('sha1', piece, 'buffer'))),
    pieceSha256: Buffer.concat(pieces.map((piece) => hash('sha256', piece, 'buffer'))),
    chunks: listChunks?.(contents),
  })
  return { descriptor: parseDescriptor(torrent), torrent, blob }
}

/** A temporary folder and everything opened in it; disposing closes and removes all. */
export class Playground implements AsyncDisposable {
  readonly dir: string
  readonly #nodes: SwarmNode[] = []
  #count = 0

  private constructor(dir: string) {
    this.dir = dir
  }

  static async create(): Promise<Playground> {
    return new Playground(await mkdtemp(join(tmpdir(), 'shoal-swarm-')))
  }

  async node(uploadBytesPerSecond?: number, downloadBytesPerSecond?: number): Promise<SwarmNode> {
    const log = { debug() {}, info() {}, error() {} }
    const node = await SwarmNode.listen({
      ...{ host: '127.0.0.1', port: 0, log },
      ...(uploadBytesPerSecond === undefined ? {} : { uploadLimit: () => uploadBytesPerSecond }),
      ...(downloadBytesPerSecond === undefined ? {} : { downloadLimit: () => downloadBytesPerSecond }),
    })
    this.#nodes.push(node)
    return node
  }

  /** A swarm in a folder of its own, or in `name`'s. */
  async open(node: SwarmNode, sample: Sample, o: Partial<SwarmOptions> & { name?: string } = {}): Promise<Swarm> {
    const { name = `machine-${this.#count++}`, ...options } = o
    await mkdir(join(this.dir, name), { recursive: true })
    return node.open({
      torrent: sample.descriptor,
      dir: join(this.dir, name, 'release'),
      stateFile: join(this.dir, name, 'state'),
      key: undefined,
      ...options,
    })
  }

  /** A node and swarm that have everything. */
  async seed(sample: Sample, o: Partial<SwarmOptions> & { name?: string; uploadBytesPerSecond?: number } = {}) {
    const { uploadBytesPerSecond, ...options } = o
    const name = options.name ?? `seed-${this.#count++}`
    await writeRelease(join(this.dir, name, 'release'), sample)
    const node = await this.node(uploadBytesPerSecond)
    const swarm = await this.open(node, sample, { ...options, name })
    await swarm.done
    return { node, swarm, address: { host: '127.0.0.1', port: node.port } }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all(this.#nodes.map((node) => node[Symbol.asyncDispose]()))
    await rm(this.dir, { recursive: true, force: true })
  }
}

export async function writeRelease(dir: string, { descriptor, blob }: Sample): Promise<void> {
  let at = 0
  for (const file of descriptor.files) {
    const path = join(dir, file.path)
    await mkdir(dirname(path), { recursive: true })
    if (file.symlink !== undefined) await symlink(join(dir, file.symlink), path)
    else await writeFile(path, blob.subarray(at, at + file.sizeBytes))
    if (file.executable) await chmod(path, 0o755)
    at += file.sizeBytes
  }
}

/** The folder holds the artifact's bytes, links and modes. */
export async function assertRelease(dir: string, { descriptor, blob }: Sample): Promise<void> {
  let at = 0
  for (const file of descriptor.files) {
    const path = join(dir, file.path)
    if (file.symlink !== undefined) {
      assert.is(join(dirname(path), await readlink(path)), join(dir, file.symlink), `link ${file.path}`)
      continue
    }
    const bytes = await readFile(path)
    assert.ok(bytes.equals(blob.subarray(at, at + file.sizeBytes)), `${file.path} differs`)
    at += file.sizeBytes
  }
}

/** The promise, or an error when it takes longer than this, times `patience`. */
export async function within<T>(promise: Promise<T>, what: string, timeoutMs = 20_000): Promise<T> {
  const { promise: late, reject } = Promise.withResolvers<never>()
  const timer = setTimeout(() => reject(new Error(`timed out: ${what}`)), timeoutMs * patience)
  try {
    return await Promise.race([promise, late])
  } finally {
    clearTimeout(timer)
  }
}
