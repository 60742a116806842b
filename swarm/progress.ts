import { createHash } from 'node:crypto'
import { open, readFile, rename } from 'node:fs/promises'
import { dirname } from 'node:path'
import type { Torrent } from '../api/torrent.ts'
import { Bitfield } from './bitfield.ts'

/**
 * The state file: which pieces are verified and on disk, and when each file was last changed by us. Written whole,
 * after the data was synced, and renamed into place, so a crash leaves the old or the new one. A file changed since is
 * one we don't trust: its pieces are hashed again.
 *
 *   magic 8 | descriptor digest 32 | bitfield | mtime ns 8 × files | SHA-256 of all before 32
 */
export interface Progress {
  pieces: Bitfield
  modifiedNs: BigUint64Array
}

const MAGIC = Buffer.from('shoalst1')
const DIGEST_BYTES = 32

export async function saveProgress(stateFile: string, torrent: Torrent, progress: Progress): Promise<void> {
  const modified = Buffer.alloc(progress.modifiedNs.length * 8)
  progress.modifiedNs.forEach((ns, i) => {
    modified.writeBigUInt64BE(ns, i * 8)
  })
  const body = Buffer.concat([MAGIC, digestBytes(torrent), progress.pieces.bytes, modified])
  const temporary = `${stateFile}.new`
  {
    await using file = await open(temporary, 'w', 0o600)
    await file.writeFile(Buffer.concat([body, createHash('sha256').update(body).digest()]))
    await file.sync()
  }
  await rename(temporary, stateFile)
  await using folder = await open(dirname(stateFile), 'r')
  await folder.sync()
}

/** @returns undefined when there is none, it is damaged, or it is another artifact's. */
export async function loadProgress(stateFile: string, torrent: Torrent): Promise<Progress | undefined> {
  const bytes = await readFile(stateFile).catch(() => undefined)
  const bitfieldBytes = Math.ceil(torrent.pieceCount / 8)
  const bodyBytes = MAGIC.length + DIGEST_BYTES + bitfieldBytes + torrent.files.length * 8
  if (bytes?.length !== bodyBytes + DIGEST_BYTES) return undefined
  const body = bytes.subarray(0, bodyBytes)
  if (!createHash('sha256').update(body).digest().equals(bytes.subarray(bodyBytes))) return undefined
  const start = MAGIC.length + DIGEST_BYTES
  if (!body.subarray(0, start).equals(Buffer.concat([MAGIC, digestBytes(torrent)]))) return undefined
  const pieces = Bitfield.parse(torrent.pieceCount, body.subarray(start, start + bitfieldBytes))
  if (!pieces) return undefined
  const modifiedNs = new BigUint64Array(torrent.files.length)
  for (let i = 0; i < modifiedNs.length; i++) modifiedNs[i] = body.readBigUInt64BE(start + bitfieldBytes + i * 8)
  return { pieces, modifiedNs }
}

function digestBytes(torrent: Torrent): Buffer {
  return Buffer.from(torrent.digest.slice('sha256:'.length), 'hex')
}
