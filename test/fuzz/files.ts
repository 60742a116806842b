/** Bytes that come in files and greetings: bencoding, torrents, descriptors, greetings, the state file. */
import { hash } from 'node:crypto'
import { readFile, writeFile } from 'node:fs/promises'
import { join, normalize } from 'node:path'
import fc from 'fast-check'
import * as assert from 'uvu/assert'
import { type Bencoded, decodeBencode, encodeBencode } from '../../api/bencode.ts'
import { encodeDescriptor, parseDescriptor } from '../../api/descriptor.ts'
import { ShoalError } from '../../api/errors.ts'
import { encodeTorrent, parseTorrent, type TorrentFile } from '../../api/torrent.ts'
import { Bitfield } from '../../swarm/bitfield.ts'
import { encodeGreeting, NONCE_BYTES, parseGreeting } from '../../swarm/extension.ts'
import { loadProgress, saveProgress } from '../../swarm/progress.ts'
import { bencoded, grafts, mutations } from './mutations.ts'

const KIB16 = 16 << 10

function decoded(bytes: Uint8Array): Bencoded | undefined {
  try {
    return decodeBencode(bytes)
  } catch (error) {
    if (!(error instanceof SyntaxError)) throw error
    return undefined
  }
}

/** One value or a `SyntaxError`; what was encoded comes back the same. */
export const bencode = fc.property(bencoded, mutations, (value, mutate) => {
  const bytes = Buffer.from(encodeBencode(value))
  assert.ok(bytes.equals(encodeBencode(decodeBencode(bytes))))
  const other = decoded(mutate(bytes))
  if (other === undefined) return
  const canonical = Buffer.from(encodeBencode(other))
  assert.ok(canonical.equals(encodeBencode(decodeBencode(canonical))))
})

const files: TorrentFile[] = [
  { path: 'a/b', sizeBytes: KIB16 + 5, executable: false },
  { path: 'bin/x', sizeBytes: 2 * KIB16, executable: true },
  { path: 'l', sizeBytes: 0, executable: false, symlink: 'a/b' },
]
const pieces = { pieceLengthBytes: KIB16, pieceSha1: Buffer.alloc(80, 1) }
const samples = [
  encodeDescriptor({ name: 'n', files, ...pieces, pieceSha256: Buffer.alloc(128, 2) }),
  encodeTorrent({
    ...{ name: 'f', files: [{ path: 'f', sizeBytes: 4 * KIB16, executable: true }], ...pieces },
    ...{ pieceSha256: undefined, singleFile: true, private: false, announce: 'http://t/announce' },
  }),
  encodeTorrent({
    ...{ name: 'padded', ...pieces, pieceSha256: undefined, singleFile: false, private: true, announce: undefined },
    files: [
      { path: 'z', sizeBytes: 5, executable: false },
      { path: '.pad/1', sizeBytes: KIB16 - 5, executable: false, padding: true },
      { path: 'a', sizeBytes: 3 * KIB16, executable: false },
    ],
  }),
]

function refusedOr<T>(parse: () => T): T | undefined {
  try {
    return parse()
  } catch (error) {
    if (!(error instanceof ShoalError && error.code === 'DescriptorInvalid')) throw error
    return undefined
  }
}

/** Refused as `DescriptorInvalid`, or consistent, canonical and inside its folder. */
export const torrent = fc.property(fc.constantFrom(...samples), grafts, mutations, (sample, graft, mutate) => {
  const bytes = mutate(Buffer.from(encodeBencode(graft(decodeBencode(sample)))))
  const parsed = refusedOr(() => parseTorrent(bytes))
  const descriptor = refusedOr(() => parseDescriptor(bytes))
  if (!parsed) return assert.is(descriptor, undefined)
  assert.ok(bytes.equals(encodeBencode(decodeBencode(bytes))))
  assert.is(parsed.pieceSha1.length, 20 * parsed.pieceCount)
  assert.is(
    parsed.sizeBytes,
    parsed.files.reduce((sum, file) => sum + file.sizeBytes, 0),
  )
  for (const { path, padding, symlink = '' } of parsed.files)
    for (const each of padding ? [] : [path, symlink]) {
      assert.is(join('/root', each), normalize(`/root/${each}`).replace(/\/$/, ''))
      assert.ok(join('/root', each).startsWith('/root') && !each.split('/').includes('..'))
    }
  if (descriptor) assert.is(descriptor.digest, parsed.digest)
  const again = parseTorrent(encodeTorrent(parsed))
  assert.equal(again.files, parsed.files)
})

const greeting = { listenPort: 1000, blockBytes: 128 << 10, maxRequests: 512, spreads: true }
const greetings = [greeting, { ...greeting, spreads: false, nonce: Buffer.alloc(NONCE_BYTES, 7) }].map((each) =>
  encodeGreeting(each).subarray(1),
)

/** Never throws; what it takes over is within its bounds. */
export const greetingOfPeer = fc.property(fc.constantFrom(...greetings), grafts, mutations, (sample, graft, mutate) => {
  const parsed = parseGreeting(mutate(Buffer.from(encodeBencode(graft(decodeBencode(sample))))), KIB16)
  if (!parsed) return
  const within = (value: number | undefined, min: number, max: number) =>
    assert.ok(value === undefined || (Number.isInteger(value) && value >= min && value <= max), JSON.stringify(parsed))
  within(parsed.blockBytes, KIB16, 1 << 24)
  within(parsed.maxRequests, 1, 100_000)
  within(parsed.listenPort, 1, 65_535)
  within(parsed.proofMessage, 1, 255)
  within(parsed.begunMessage, 1, 255)
  assert.ok(parsed.nonce === undefined || parsed.nonce.length === NONCE_BYTES)
})

/** The state file, in this folder: as it was saved, or not at all, even where someone made the digest right. */
export function stateFile(dir: string) {
  const path = join(dir, 'state')
  const [sample = new Uint8Array()] = samples
  const descriptor = parseDescriptor(sample)
  const bits = fc.uniqueArray(fc.nat(descriptor.pieceCount - 1))
  return fc.asyncProperty(bits, mutations, fc.boolean(), async (indexes, mutate, resealed) => {
    const saved = new Bitfield(descriptor.pieceCount)
    for (const index of indexes) saved.add(index)
    await saveProgress(path, descriptor, { pieces: saved, modifiedNs: new BigUint64Array([1n, 2n, 3n]) })
    const whole = await readFile(path)
    const body = mutate(whole.subarray(0, -32))
    const bytes = resealed ? Buffer.concat([body, hash('sha256', body, 'buffer')]) : mutate(whole)
    await writeFile(path, bytes)
    const loaded = await loadProgress(path, descriptor)
    if (bytes.equals(whole)) assert.ok(loaded)
    else if (!resealed) assert.is(loaded, undefined)
    if (!loaded) return
    assert.is(loaded.pieces.size, descriptor.pieceCount)
    assert.is(loaded.modifiedNs.length, descriptor.files.length)
  })
}
