/**
 * An artifact's descriptor: the `.torrent` beside its blob. Its files in path order are the blob; its pieces have
 * SHA-256 digests of ours beside the SHA-1 of the BitTorrent wire. The same name and files give the same bytes: there
 * is no date and no announce in it.
 */
import { comparePaths, encodeTorrent, invalid, parseTorrent, type Torrent, type TorrentFile } from './torrent.ts'

export interface DescriptorInput {
  /** One path segment; part of the digest. */
  name: string
  /** A power of two, 16 KiB to 64 MiB. */
  pieceLengthBytes: number
  /** In the order of `comparePaths`, without padding. */
  files: TorrentFile[]
  /** 20 bytes per piece. */
  pieceSha1: Uint8Array
  /** 32 bytes per piece. */
  pieceSha256: Uint8Array
  /** As in `chunks.ts`. Absent from what an older version built. */
  chunks?: Uint8Array | undefined
}

/** `digest` is the identity of the artifact's files. */
export interface Descriptor extends Torrent {
  pieceSha256: Uint8Array
}

/** @throws Stalled `DescriptorInvalid`: as `parseTorrent`, or another client's. */
export function parseDescriptor(bytes: Uint8Array): Descriptor {
  const torrent = parseTorrent(bytes)
  const { pieceSha256 } = torrent
  if (!pieceSha256) throw invalid('it has no piece sha256')
  if (torrent.singleFile || !torrent.private || torrent.announce !== undefined)
    throw invalid('it is not a private list of files without a tracker')
  const descriptor = { ...torrent, pieceSha256 }
  check(descriptor)
  return descriptor
}

/** The bytes of the descriptor. @throws Stalled `DescriptorInvalid` as `parseDescriptor` would. */
export function encodeDescriptor(input: DescriptorInput): Uint8Array {
  check(input)
  return encodeTorrent({ ...input, singleFile: false, private: true, announce: undefined })
}

function check({ pieceLengthBytes, files }: DescriptorInput): void {
  if (!Number.isInteger(Math.log2(pieceLengthBytes)))
    throw invalid(`a piece length of ${pieceLengthBytes} is not a power of two`)
  let previous: string | undefined
  for (const { path, padding } of files) {
    if (padding) throw invalid('it has padding')
    if (previous !== undefined && comparePaths(previous, path) >= 0)
      throw invalid(`${JSON.stringify(path)} is out of order or there twice`)
    previous = path
  }
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
