/**
 * An artifact's descriptor: the `.torrent` beside its blob. It lists the files whose bytes, in path order, are the
 * blob, and the digests of its pieces: SHA-1 for the BitTorrent wire (BEP 3), SHA-256 (`piece sha256`) for us. Modes
 * and symlinks follow BEP 47. The same name and files give the same bytes: there is no date and no announce in it.
 */
import { createHash } from 'node:crypto'
import { type Bencoded, decodeBencode, encodeBencode } from './bencode.ts'
import { Stalled } from './errors.ts'

export interface DescriptorFile {
  /** Relative, segments joined by `/`. */
  path: string
  /** 0 for a symlink. */
  sizeBytes: number
  executable: boolean
  /** Where a symlink points, as a path from the root of the artifact; `''` is the root itself. */
  symlink?: string
}

export interface DescriptorInput {
  /** One path segment; part of the digest. */
  name: string
  /** A power of two, 16 KiB to 64 MiB. */
  pieceLengthBytes: number
  /** In the order of `comparePaths`. */
  files: DescriptorFile[]
  /** 20 bytes per piece. */
  pieceSha1: Uint8Array
  /** 32 bytes per piece. */
  pieceSha256: Uint8Array
}

export interface Descriptor extends DescriptorInput {
  sizeBytes: number
  pieceCount: number
  /** SHA-1 of the info dictionary, 40 hex digits: the swarm's name on the wire. */
  infoHash: string
  /** `sha256:` and the SHA-256 of the info dictionary: the descriptor's identity. */
  digest: string
}

/** What a descriptor may hold. A 1 TiB artifact in 4 MiB pieces fits. */
const limits = {
  descriptorBytes: 64 << 20,
  sizeBytes: 2 ** 42,
  pieces: 2 ** 18,
  files: 500_000,
  pathBytes: 2048,
  segmentBytes: 255,
  minPieceLengthBytes: 16 << 10,
  maxPieceLengthBytes: 64 << 20,
}

/** @throws Stalled `DescriptorInvalid`: malformed, not canonical, beyond a limit, or with a path that leaves the artifact. */
export function parseDescriptor(bytes: Uint8Array): Descriptor {
  if (bytes.length > limits.descriptorBytes) throw invalid('larger than 64 MiB')
  let root: Bencoded
  try {
    root = decodeBencode(bytes)
  } catch (error) {
    throw invalid('not bencoded', error)
  }
  const info = root instanceof Map ? root.get('info') : undefined
  if (!(info instanceof Map)) throw invalid('no info dictionary')
  // the digest is taken over our own encoding of info: it has to be the one in the file
  if (!Buffer.from(encodeBencode(root)).equals(bytes)) throw invalid('not canonical')

  const pieceLengthBytes = integer(info.get('piece length'), 'piece length')
  const entries = info.get('files')
  if (!Array.isArray(entries)) throw invalid('no list of files')
  const input: DescriptorInput = {
    name: text(info.get('name'), 'name'),
    pieceLengthBytes,
    files: entries.map(parseFile),
    pieceSha1: byteString(info.get('pieces'), 'pieces'),
    pieceSha256: byteString(info.get('piece sha256'), 'piece sha256'),
  }
  return { ...input, ...validate(input), ...identify(encodeBencode(info)) }
}

/** The bytes of the descriptor. @throws Stalled `DescriptorInvalid` as `parseDescriptor` would. */
export function encodeDescriptor(input: DescriptorInput): Uint8Array {
  validate(input)
  const info = new Map<string, Bencoded>([
    ['files', input.files.map(encodeFile)],
    ['name', Buffer.from(input.name)],
    ['piece length', input.pieceLengthBytes],
    ['piece sha256', input.pieceSha256],
    ['pieces', input.pieceSha1],
    ['private', 1],
  ])
  const bytes = encodeBencode(new Map([['info', info]]))
  if (bytes.length > limits.descriptorBytes) throw invalid('larger than 64 MiB')
  return bytes
}

/** The order of files in the blob: by the bytes of their UTF-8 paths. */
export function comparePaths(a: string, b: string): number {
  return Buffer.compare(Buffer.from(a), Buffer.from(b))
}

/**
 * What `readlink` gave for the link at `linkPath`, as a path from the artifact's root; undefined when it is absolute
 * or leaves the artifact. Purely lexical: the caller refuses links whose text climbs through another link.
 */
export function symlinkFromRoot(linkPath: string, linkText: string): string | undefined {
  if (linkText === '' || linkText.startsWith('/')) return undefined
  const segments = linkPath.split('/').slice(0, -1)
  for (const segment of linkText.split('/')) {
    if (segment === '' || segment === '.') continue
    if (segment !== '..') segments.push(segment)
    else if (segments.pop() === undefined) return undefined
  }
  return segments.join('/')
}

/** Every piece is `pieceLengthBytes` long, the last one what is left. */
export function pieceSizeBytes(descriptor: Descriptor, index: number): number {
  return Math.min(descriptor.pieceLengthBytes, descriptor.sizeBytes - index * descriptor.pieceLengthBytes)
}

/**
 * From 256 KiB to 4 MiB, so that there are 256 to 512 pieces or, beyond 2 GiB, more: a swarm of 20,000 needs 1 + 14 / pieces
 * of the least time (Mundinger, Weber, Weiss 2008), and each piece costs a hash, a write and a message to every peer: with
 * pieces of 256 KiB 20 machines of 2 cores fetched 150 MB in 16 s, with 1 MiB in 10.
 */
export function suggestPieceLengthBytes(sizeBytes: number): number {
  let length = 256 << 10
  while (length < 4 << 20 && sizeBytes / length > 512) length *= 2
  return length
}

function identify(info: Uint8Array): Pick<Descriptor, 'infoHash' | 'digest'> {
  return {
    infoHash: createHash('sha1').update(info).digest('hex'),
    digest: `sha256:${createHash('sha256').update(info).digest('hex')}`,
  }
}

function validate(input: DescriptorInput): Pick<Descriptor, 'sizeBytes' | 'pieceCount'> {
  checkPath(input.name, 'name')
  if (input.name.includes('/')) throw invalid('the name is more than one path segment')
  const length = input.pieceLengthBytes
  if (
    length < limits.minPieceLengthBytes ||
    length > limits.maxPieceLengthBytes ||
    !Number.isInteger(Math.log2(length))
  )
    throw invalid(`a piece length of ${length} is not a power of two from 16 KiB to 64 MiB`)
  if (input.files.length > limits.files) throw invalid(`more than ${limits.files} files`)
  const sizeBytes = checkFiles(input.files)
  if (sizeBytes === 0) throw invalid('the artifact is empty')
  const pieceCount = Math.ceil(sizeBytes / length)
  if (sizeBytes > limits.sizeBytes || pieceCount > limits.pieces) throw invalid('the artifact is too large')
  if (input.pieceSha1.length !== pieceCount * 20) throw invalid('pieces does not match the sizes')
  if (input.pieceSha256.length !== pieceCount * 32) throw invalid('piece sha256 does not match the sizes')
  return { sizeBytes, pieceCount }
}

/** Sorted, unique, and no file or link is also a folder of another: so nothing is ever written through a link. */
function checkFiles(files: DescriptorFile[]): number {
  let sizeBytes = 0
  let previous: string | undefined
  const leaves = new Set<string>()
  for (const file of files) {
    checkPath(file.path, 'path')
    if (previous !== undefined && comparePaths(previous, file.path) >= 0)
      throw invalid(`${JSON.stringify(file.path)} is out of order or there twice`)
    previous = file.path
    if (!Number.isSafeInteger(file.sizeBytes) || file.sizeBytes < 0) throw invalid('a size is not a whole number')
    if (file.symlink !== undefined) {
      if (file.sizeBytes !== 0 || file.executable) throw invalid('a symlink has a size or a mode')
      if (file.symlink !== '') checkPath(file.symlink, 'symlink')
    }
    leaves.add(file.path)
    sizeBytes += file.sizeBytes
  }
  for (const { path } of files) {
    for (let end = path.lastIndexOf('/'); end > 0; end = path.lastIndexOf('/', end - 1))
      if (leaves.has(path.slice(0, end))) throw invalid(`${JSON.stringify(path)} is inside something that is no folder`)
  }
  return sizeBytes
}

function checkPath(path: string, what: string): void {
  if (Buffer.byteLength(path) > limits.pathBytes) throw invalid(`a ${what} is too long`)
  if (path.includes('\0') || !path.isWellFormed()) throw invalid(`a ${what} has characters that no path has`)
  for (const segment of path.split('/')) {
    if (segment === '' || segment === '.' || segment === '..')
      throw invalid(`${what} ${JSON.stringify(path)} is not a plain relative path`)
    if (Buffer.byteLength(segment) > limits.segmentBytes) throw invalid(`a ${what} has a segment over 255 bytes`)
  }
}

function parseFile(entry: Bencoded): DescriptorFile {
  if (!(entry instanceof Map)) throw invalid('a file is not a dictionary')
  const attributes = entry.has('attr') ? text(entry.get('attr'), 'attr') : ''
  if (!['', 'x', 'l'].includes(attributes)) throw invalid(`the attribute ${JSON.stringify(attributes)} is not known`)
  const file: DescriptorFile = {
    path: segments(entry.get('path'), 'path'),
    sizeBytes: integer(entry.get('length'), 'length'),
    executable: attributes === 'x',
  }
  if ((attributes === 'l') !== entry.has('symlink path')) throw invalid('attr and symlink path do not agree')
  if (attributes === 'l') file.symlink = segments(entry.get('symlink path'), 'symlink path')
  return file
}

function encodeFile(file: DescriptorFile): Map<string, Bencoded> {
  const entry = new Map<string, Bencoded>([
    ['length', file.sizeBytes],
    ['path', list(file.path)],
  ])
  if (file.executable) entry.set('attr', Buffer.from('x'))
  if (file.symlink !== undefined) {
    entry.set('attr', Buffer.from('l'))
    entry.set('symlink path', list(file.symlink))
  }
  return entry
}

function list(path: string): Bencoded[] {
  return path === '' ? [] : path.split('/').map((segment) => Buffer.from(segment))
}

function segments(value: Bencoded | undefined, what: string): string {
  if (!Array.isArray(value)) throw invalid(`${what} is not a list`)
  const parts = value.map((segment) => text(segment, what))
  if (parts.some((segment) => segment === '' || segment.includes('/'))) throw invalid(`a ${what} has a bad segment`)
  return parts.join('/')
}

function text(value: Bencoded | undefined, what: string): string {
  try {
    return new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(byteString(value, what))
  } catch (error) {
    throw error instanceof Stalled ? error : invalid(`${what} is not UTF-8`, error)
  }
}

function byteString(value: Bencoded | undefined, what: string): Uint8Array {
  if (!(value instanceof Uint8Array)) throw invalid(`${what} is not a byte string`)
  return value
}

function integer(value: Bencoded | undefined, what: string): number {
  if (typeof value !== 'number') throw invalid(`${what} is not a number`)
  return value
}

function invalid(message: string, cause?: unknown): Stalled {
  return new Stalled('DescriptorInvalid', `The descriptor is refused: ${message}.`, { cause })
}
