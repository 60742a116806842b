import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { type Bencoded, encodeBencode } from './bencode.ts'
import { assertDamageShows } from './fixture.ts'
import { encodeTorrent, parseTorrent, type TorrentInput } from './torrent.ts'

const test = suite('torrent')
const KIB16 = 16 << 10

function foreign(info: Record<string, Bencoded>, root: Record<string, Bencoded> = {}): Uint8Array {
  const sizeBytes = 3 * KIB16
  const whole: Record<string, Bencoded> = {
    name: Buffer.from('n'),
    'piece length': KIB16,
    pieces: Buffer.alloc((20 * sizeBytes) / KIB16),
    ...info,
  }
  const map = new Map(Object.entries(whole))
  if (!map.has('files') && !map.has('length')) map.set('length', sizeBytes)
  return encodeBencode(new Map<string, Bencoded>([...Object.entries(root), ['info', map]]))
}
const file = (path: string, length: number, more: Record<string, Bencoded> = {}): Bencoded =>
  new Map<string, Bencoded>(
    Object.entries({ length, path: path.split('/').map((segment) => Buffer.from(segment)), ...more }),
  )
const refused = (bytes: Uint8Array, reason: RegExp) => {
  try {
    parseTorrent(bytes)
  } catch (error) {
    assert.is((error as { code?: string }).code, 'DescriptorInvalid')
    return assert.match((error as Error).message, reason)
  }
  assert.unreachable(`not refused: ${reason}`)
}

test('another client’s single file, with what else it wrote', () => {
  const torrent = parseTorrent(
    foreign({ source: Buffer.from('x') }, { announce: Buffer.from('http://t/announce'), 'creation date': 5 }),
  )
  assert.equal(torrent.files, [{ path: 'n', sizeBytes: 3 * KIB16, executable: false }])
  assert.equal([torrent.singleFile, torrent.private, torrent.pieceCount], [true, false, 3])
  assert.equal([torrent.announce, torrent.pieceSha256], ['http://t/announce', undefined])
})

test('another client’s folder: in any order, with padding, hidden files, modes and links', () => {
  const { files } = parseTorrent(
    foreign({
      files: [
        file('z', KIB16 - 10, { attr: Buffer.from('hx') }),
        file('.pad/10', 10, { attr: Buffer.from('p') }),
        file('a/b', 2 * KIB16 - 10),
        file('.pad/10', 10, { attr: Buffer.from('p') }),
        file('l', 0, { attr: Buffer.from('l'), 'symlink path': [Buffer.from('a'), Buffer.from('b')] }),
      ],
    }),
  )
  assert.equal(files[0], { path: 'z', sizeBytes: KIB16 - 10, executable: true })
  assert.equal(
    files.filter(({ padding }) => padding).map(({ sizeBytes }) => sizeBytes),
    [10, 10],
  )
  assert.is(files[4]?.symlink, 'a/b')
})

test('what leads out of its folder or contradicts itself is refused', () => {
  const whole = (path: string) => foreign({ files: [file(path, 3 * KIB16)] })
  for (const path of ['../x', 'a/../x', '.', 'a//b', '\0']) refused(whole(path), /path|segment|characters/)
  refused(foreign({ files: [file('a', KIB16), file('a/b', 2 * KIB16)] }), /no folder/)
  refused(foreign({ files: [file('a', KIB16), file('a', 2 * KIB16)] }), /twice/)
  refused(foreign({ name: Buffer.from('..') }), /name/)
  refused(foreign({ name: Buffer.from('a/b') }), /name/)
  refused(foreign({ 'piece length': 1000 }), /piece length/)
  refused(foreign({ 'piece length': 0 }), /piece length/)
  refused(foreign({ pieces: Buffer.alloc(40) }), /pieces/)
  refused(foreign({ 'piece sha256': Buffer.alloc(32) }), /piece sha256/)
  refused(foreign({ length: -5 }), /size/)
  refused(foreign({ length: 0, pieces: Buffer.alloc(0) }), /empty/)
  refused(Buffer.from('d4:infod6:lengthi1eee'), /v1/)
  refused(Buffer.from('nonsense'), /bencoded/)
})

test('a small file that would take all memory, or minutes, is refused or read in time', () => {
  // lists in a list, each of which costs some hundred bytes of memory
  refused(Buffer.concat([Buffer.from('l'), Buffer.alloc(40 << 20, 'le'), Buffer.from('e')]), /bencoded/)
  const deep = Array.from({ length: 500 }, (_, i) => file(`${i}${'/a'.repeat(1000)}`, i === 0 ? 3 * KIB16 : 0))
  const bytes = foreign({ files: deep })
  const beganMs = performance.now()
  assert.is(parseTorrent(bytes).files.length, 500)
  assert.ok(performance.now() - beganMs < 10_000)
  refused(foreign({ files: [file('a/b', 3 * KIB16), file('a-', 0), file('a', 0)] }), /no folder/)
})

test('what was encoded is what is parsed; random damage is refused or gives another infohash', () => {
  const input: TorrentInput = {
    ...{ name: 'n', pieceLengthBytes: KIB16, singleFile: false, private: true, announce: 'http://t/a' },
    files: [
      { path: 'b', sizeBytes: KIB16, executable: true },
      { path: 'a', sizeBytes: 1, executable: false },
    ],
    pieceSha1: Buffer.alloc(40, 1),
    pieceSha256: Buffer.alloc(64, 2),
  }
  const bytes = encodeTorrent(input)
  const { announce, files } = parseTorrent(bytes)
  assert.equal([announce, files], [input.announce, input.files])
  // the announce before it is no part of the infohash
  const infoAt = Buffer.from(bytes).indexOf('4:info')
  assertDamageShows(bytes, (each) => parseTorrent(each).infoHash, infoAt)
})

test.run()
