import fc from 'fast-check'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { decodeBencode, encodeBencode } from './bencode.ts'
import { type DescriptorInput, encodeDescriptor, parseDescriptor, symlinkFromRoot } from './descriptor.ts'
import { assertDamageShows } from './fixture.ts'
import { comparePaths, type TorrentFile } from './torrent.ts'

const test = suite('descriptor')

function inputOf(files: TorrentFile[], pieceLengthBytes = 16384): DescriptorInput {
  const pieces = Math.ceil(files.reduce((sum, file) => sum + file.sizeBytes, 0) / pieceLengthBytes)
  return {
    name: 'web',
    pieceLengthBytes,
    files,
    pieceSha1: Buffer.alloc(pieces * 20, 7),
    pieceSha256: Buffer.alloc(pieces * 32, 9),
  }
}

const file = (path: string, sizeBytes = 1): TorrentFile => ({ path, sizeBytes, executable: false })
const refused = (files: TorrentFile[]) =>
  assert.throws(
    () => encodeDescriptor(inputOf(files)),
    (error: { code?: string }) => error.code === 'DescriptorInvalid',
  )

test('what was encoded is what is parsed, for any valid tree', () => {
  // folders end in d, leaves do not: a leaf is then never a folder of another
  const segment = fc
    .string({ minLength: 1, maxLength: 8, unit: 'binary' })
    .map((text) => `${text.replaceAll(/[/\0]/g, '_')}f`)
  const path = fc
    .tuple(fc.array(segment, { maxLength: 3 }), segment)
    .map(([folders, leaf]) => [...folders.map((folder) => `${folder}d`), leaf].join('/'))
  const entry = fc.record({ path, sizeBytes: fc.nat(100_000), executable: fc.boolean(), link: fc.option(path) })
  fc.assert(
    fc.property(fc.uniqueArray(entry, { selector: (e) => e.path, minLength: 1, maxLength: 20 }), (entries) => {
      const files: TorrentFile[] = entries
        .map(({ link, ...rest }) =>
          link === null ? rest : { path: rest.path, sizeBytes: 0, executable: false, symlink: link },
        )
        .sort((a, b) => comparePaths(a.path, b.path))
      fc.pre(files.some((f) => f.sizeBytes > 0))
      const input = inputOf(files)
      const bytes = encodeDescriptor(input)
      const parsed = parseDescriptor(bytes)
      assert.equal(parsed.files, files)
      assert.equal(Buffer.from(encodeDescriptor(parsed)), Buffer.from(bytes))
    }),
    { numRuns: 200 },
  )
})

test('random damage is refused or changes the digest, and never throws anything else', () => {
  const bytes = encodeDescriptor(
    inputOf([
      file('a/b', 40_000),
      { ...file('c'), executable: true },
      { path: 'l', sizeBytes: 0, executable: false, symlink: 'a/b' },
    ]),
  )
  assertDamageShows(bytes, (each) => parseDescriptor(each).digest)
})

test('chunks add up to the files, or are refused; a descriptor may have none', () => {
  const entry = (sizeBytes: number) => {
    const bytes = Buffer.alloc(12, 5)
    bytes.writeUInt32BE(sizeBytes)
    return bytes
  }
  const files = [
    file('a', 10),
    file('b', 0),
    { path: 'c', sizeBytes: 0, executable: false, symlink: 'a' },
    file('d', 7),
  ]
  const encode = (chunks: Uint8Array) => encodeDescriptor({ ...inputOf(files), chunks })
  const list = Buffer.concat([4, 6, 7].map(entry))
  assert.equal(Buffer.from(parseDescriptor(encode(list)).chunks ?? []), list)
  assert.is(parseDescriptor(encodeDescriptor(inputOf(files))).chunks, undefined)
  for (const sizes of [[], [10], [4, 6], [17], [4, 7, 6], [4, 6, 8], [4, 6, 7, 1], [4, 6, 7, 0], [0, 4, 6, 7], [4, 13]])
    assert.throws(
      () => encode(Buffer.concat(sizes.map(entry))),
      (error: { code?: string }) => error.code === 'DescriptorInvalid',
      `${sizes}`,
    )
  assert.throws(() => encode(list.subarray(0, 35)), /half an entry/)
})

test('paths that leave the artifact, repeat or hide another are refused', () => {
  for (const path of ['/etc/passwd', '../x', 'a/../../x', 'a//b', '', '.', 'a/.', 'a/', 'a\0b', 'x'.repeat(256)])
    refused([file(path)])
  refused([file('a'), file('a')])
  refused([file('b'), file('a')])
  refused([file('a'), file('a/b')])
  refused([file('a'), file('a-b'), file('a/b')])
})

test('symlinks stay inside, carry nothing, and nothing is written through one', () => {
  const link = (symlink: string): TorrentFile => ({ path: 'l', sizeBytes: 0, executable: false, symlink })
  for (const target of ['/etc', '..', '../x', 'a/../..', 'a//b']) refused([file('a'), link(target)])
  refused([file('a'), { ...link('a'), sizeBytes: 5 }])
  refused([file('a'), link('a'), file('l/x')])
  assert.is(parseDescriptor(encodeDescriptor(inputOf([file('a'), link('')]))).files[1]?.symlink, '')
})

test('an empty artifact, absurd sizes and piece lengths, and missing hashes are refused', () => {
  refused([])
  refused([file('a', 0)])
  refused([file('a', -1)])
  refused([file('a', 1.5)])
  for (const length of [0, 1, 8192, 20_000, 2 ** 27])
    assert.throws(() => encodeDescriptor({ ...inputOf([file('a')]), pieceLengthBytes: length }), /refused/)
  assert.throws(() => encodeDescriptor({ ...inputOf([file('a')]), pieceSha256: Buffer.alloc(31) }), /refused/)
})

test('bytes that are not one canonical value are refused at once', () => {
  const hostile = [
    '',
    'l-3:',
    'd',
    'i',
    'i-e',
    '99999999999999999999:',
    '5:abc',
    `${'l'.repeat(100_000)}`,
    'i1ei2e',
    'd4:infode1:ai03ee',
  ]
  for (const bytes of hostile) assert.throws(() => parseDescriptor(Buffer.from(bytes)), /refused/, bytes.slice(0, 20))
  const good = encodeDescriptor(inputOf([file('a')]))
  assert.throws(() => parseDescriptor(Buffer.concat([good, Buffer.from('e')])), /refused/)
})

test('a key that a newer version added is kept in the digest', () => {
  const root = decodeBencode(encodeDescriptor(inputOf([file('a')]))) as Map<string, Map<string, number>>
  const before = parseDescriptor(encodeBencode(root)).digest
  root.get('info')?.set('zz', 1)
  assert.is.not(parseDescriptor(encodeBencode(root)).digest, before)
})

test('link text becomes a path from the root, or nothing when it leaves', () => {
  assert.is(symlinkFromRoot('a/b/l', '../c'), 'a/c')
  assert.is(symlinkFromRoot('l', './x/./y'), 'x/y')
  assert.is(symlinkFromRoot('a/l', '..'), '')
  assert.is(symlinkFromRoot('a/l', '../..'), undefined)
  assert.is(symlinkFromRoot('l', '/etc'), undefined)
})

test.run()
