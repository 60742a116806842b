import { createHash } from 'node:crypto'
import { chmod, mkdir, mkdtemp, rm, symlink, utimes, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { parseDescriptor } from '../api/descriptor.ts'
import { Stalled } from '../api/errors.ts'
import { hashOutput } from './hashOutput.ts'
import { compositeChecksum } from './partSize.ts'

const test = suite<{ dir: string }>('hashOutput')

test.before.each(async (context) => {
  context.dir = await mkdtemp(join(tmpdir(), 'shoal-hash-'))
})
test.after.each(async (context) => {
  await rm(context.dir, { recursive: true, force: true })
})

const sha256 = (bytes: Uint8Array) => createHash('sha256').update(bytes).digest()

async function makeOutput(dir: string, filler: Uint8Array): Promise<string> {
  const output = join(dir, 'dist')
  await mkdir(join(output, 'bin'), { recursive: true })
  await mkdir(join(output, 'empty folder'))
  await writeFile(join(output, 'bin/server'), filler)
  await chmod(join(output, 'bin/server'), 0o755)
  await writeFile(join(output, 'a.txt'), 'a')
  await writeFile(join(output, 'bin.txt'), 'sorts before bin/')
  await symlink('bin/server', join(output, 'run'))
  await symlink('../a.txt', join(output, 'bin/up'))
  return output
}

async function code(promise: Promise<unknown>): Promise<string> {
  try {
    await promise
    return 'none'
  } catch (error) {
    return error instanceof Stalled ? error.code : String(error)
  }
}

test('the same files give the same digest and descriptor, whatever their dates and place', async ({ dir }) => {
  const filler = Buffer.alloc(700_000, 'filler')
  const first = await makeOutput(join(dir, '1'), filler)
  const second = await makeOutput(join(dir, '2'), filler)
  await utimes(join(second, 'a.txt'), 1, 1)
  const [a, b] = [await hashOutput(first, { name: 'web' }), await hashOutput(second, { name: 'web' })]
  assert.is(a.digest, b.digest)
  assert.is(a.descriptorDigest, b.descriptorDigest)
  assert.equal(Buffer.from(a.descriptor), Buffer.from(b.descriptor))
  await chmod(join(second, 'a.txt'), 0o755)
  const c = await hashOutput(second, { name: 'web' })
  assert.is(a.digest, c.digest)
  assert.is.not(a.descriptorDigest, c.descriptorDigest, 'modes are part of the descriptor')
})

test('paths are in byte order, with executable bits and symlinks inside', async ({ dir }) => {
  const hashed = await hashOutput(await makeOutput(dir, Buffer.from('x')), { name: 'web' })
  const files = parseDescriptor(hashed.descriptor).files
  assert.equal(
    files.map((file) => [file.path, file.executable, file.symlink]),
    [
      ['a.txt', false, undefined],
      ['bin.txt', false, undefined],
      ['bin/server', true, undefined],
      ['bin/up', false, 'a.txt'],
      ['run', false, 'bin/server'],
    ],
  )
  assert.is(hashed.digest, `sha256:${sha256(Buffer.from('asorts before bin/x')).toString('hex')}`)
})

test('every piece, part and the whole are hashed as a plain computation says', async ({ dir }) => {
  const blob = Buffer.alloc(40_000_001)
  for (let at = 0; at < blob.length; at += 4096)
    blob.writeUInt32LE((at * 2_654_435_761) % 2 ** 32, Math.min(at, blob.length - 4))
  const file = join(dir, 'server')
  await writeFile(file, blob)
  const seen: number[] = []
  const hashed = await hashOutput(file, { name: 'web', onBytes: (bytes) => seen.push(bytes) })
  const descriptor = parseDescriptor(hashed.descriptor)
  assert.is(descriptor.files[0]?.path, 'server')
  assert.is(hashed.digest, `sha256:${sha256(blob).toString('hex')}`)
  const size = descriptor.pieceLengthBytes
  for (let index = 0; index < descriptor.pieceCount; index++) {
    const piece = blob.subarray(index * size, (index + 1) * size)
    assert.equal(Buffer.from(descriptor.pieceSha256.subarray(index * 32, index * 32 + 32)), sha256(piece))
    const sha1 = createHash('sha1').update(piece).digest()
    assert.equal(Buffer.from(descriptor.pieceSha1.subarray(index * 20, index * 20 + 20)), sha1)
  }
  assert.equal(
    hashed.parts.map((part) => part.sizeBytes),
    [16 << 20, 16 << 20, blob.length - (32 << 20)],
  )
  for (const part of hashed.parts) assert.is(sha256(await hashed.readPart(part.number)).toString('base64'), part.sha256)
  assert.is(hashed.checksum, compositeChecksum(hashed.parts.map((part) => part.sha256)))
})

test('parts cross the borders of files', async ({ dir }) => {
  await writeFile(join(dir, 'a'), Buffer.alloc(10 << 20, 'a'))
  await writeFile(join(dir, 'b'), '')
  await writeFile(join(dir, 'c'), Buffer.alloc(10 << 20, 'c'))
  const hashed = await hashOutput(dir, { name: 'web' })
  for (const part of hashed.parts) assert.is(sha256(await hashed.readPart(part.number)).toString('base64'), part.sha256)
})

test('a symlink that leaves the output is refused, also through another symlink', async ({ dir }) => {
  for (const [name, text] of [
    ['absolute', '/etc/passwd'],
    ['up', '../../etc/passwd'],
    ['climbing', 'inner/../../x'],
  ] as const) {
    const output = join(dir, name)
    await mkdir(join(output, 'inner'), { recursive: true })
    await writeFile(join(output, 'file'), 'x')
    await symlink(text, join(output, 'link'))
    assert.is(await code(hashOutput(output, { name: 'web' })), 'OutputOutside', name)
  }
})

test('an output outside the workspace, or none, or an empty one, is refused by name', async ({ dir }) => {
  const workspace = join(dir, 'workspace')
  await mkdir(join(workspace, 'nothing'), { recursive: true })
  await writeFile(join(dir, 'secret'), 'x')
  await symlink('../secret', join(workspace, 'out'))
  const hash = (path: string) => code(hashOutput(join(workspace, path), { name: 'web', within: workspace }))
  assert.is(await hash('out'), 'OutputOutside')
  assert.is(await hash('../secret'), 'OutputOutside')
  assert.is(await hash('gone'), 'OutputMissing')
  assert.is(await hash('nothing'), 'OutputMissing')
})

test('special files and names that are not UTF-8 are refused', async ({ dir }) => {
  const { execFileSync } = await import('node:child_process')
  await mkdir(join(dir, 'pipe'))
  execFileSync('mkfifo', [join(dir, 'pipe/fifo')])
  assert.is(await code(hashOutput(join(dir, 'pipe'), { name: 'web' })), 'Invalid')
  await mkdir(join(dir, 'name'))
  await writeFile(Buffer.concat([Buffer.from(`${dir}/name/`), Buffer.from([0xff, 0xfe])]), 'x')
  assert.is(await code(hashOutput(join(dir, 'name'), { name: 'web' })), 'Invalid')
})

test('an aborted signal stops the hashing', async ({ dir }) => {
  await writeFile(join(dir, 'server'), Buffer.alloc(200 << 20))
  const abort = new AbortController()
  const hashing = hashOutput(join(dir, 'server'), {
    name: 'web',
    signal: abort.signal,
    onBytes: () => abort.abort(new Error('enough')),
  })
  assert.is(await code(hashing), 'Error: enough')
})

test.run()
