import { lstat, writeFile } from 'node:fs/promises'
import { basename, resolve } from 'node:path'
import { ShoalError } from '../../api/errors.ts'
import { encodeTorrent, parseTorrent, suggestPieceLengthBytes, type TorrentInput } from '../../api/torrent.ts'
import { hashPieces } from '../../artifacts/hashOutput.ts'
import { listOutput } from '../../artifacts/outputFiles.ts'

interface CreateOptions {
  output: string
  pieceLength?: number
  announce?: string
}

/** @throws ShoalError `NotFound` (nothing at `path`), `Conflict` (the .torrent is there); Stalled as `encodeTorrent` */
export async function create(path: string, { output, pieceLength, announce }: CreateOptions): Promise<void> {
  const stats = await lstat(path).catch((error: unknown) => {
    throw new ShoalError('NotFound', `There is nothing at ${path}.`, { cause: error })
  })
  const files = await listOutput(path)
  const sizeBytes = files.reduce((sum, file) => sum + file.sizeBytes, 0)
  const pieceLengthBytes = pieceLength ?? suggestPieceLengthBytes(sizeBytes)
  const input: Omit<TorrentInput, 'pieceSha1' | 'pieceSha256'> = {
    name: basename(resolve(path)),
    pieceLengthBytes,
    files: files.map(({ absolute: _, ...file }) => file),
    singleFile: !stats.isDirectory(),
    private: true,
    announce,
  }
  // what is wrong with it is said before, not after, everything was read
  const pieces = Math.ceil(sizeBytes / pieceLengthBytes)
  encodeTorrent({ ...input, pieceSha1: new Uint8Array(20 * pieces), pieceSha256: undefined })
  const onBytes = (bytes: number) => {
    if (process.stderr.isTTY) process.stderr.write(`\r${((100 * bytes) / sizeBytes).toFixed(0)} %\x1b[K`)
  }
  const digests = await hashPieces(files, pieceLengthBytes, { signal: undefined, onBytes })
  if (process.stderr.isTTY) process.stderr.write('\r\x1b[K')
  const torrent = encodeTorrent({ ...input, ...digests })
  try {
    await writeFile(output, torrent, { flag: 'wx' })
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error
    throw new ShoalError('Conflict', `${output} is there already.`, { cause: error })
  }
  const { infoHash, pieceCount } = parseTorrent(torrent)
  console.error(`${output}: ${sizeBytes} bytes in ${pieceCount} pieces, infohash ${infoHash}`)
}
