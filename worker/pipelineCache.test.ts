import { execFileSync } from 'node:child_process'
import { chmod, chown, link, lstat, mkdir, readdir, readFile, rm, stat, symlink, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { build } from '../api/pipeline.ts'
import type { ClaimedJob } from '../api/workerApi.ts'
import { temporaryDir } from '../hack/parts/process.ts'
import { createLogger } from '../runtime/log.ts'
import { lendCache } from './pipelineCache.ts'
import { Shelf } from './shelf.ts'

const test = suite('pipeline cache')
const temporary = await temporaryDir('shoal-cache')
test.after(async () => {
  await temporary[Symbol.asyncDispose]()
})
const log = createLogger('test', 'silent')
const [first, second] = [20_301, 20_302]
let count = 0
const openShelf = (maxBytes = 1 << 30, path = join(temporary.path, `shelf-${++count}`)) =>
  Shelf.open({ path, maxBytes, log })
const job = (pipeline: string, more: Partial<ClaimedJob> = {}): ClaimedJob => ({
  ...{ jobId: 1, token: 'x', namespace: 'demo', name: 'job', pipeline, commit: 'f'.repeat(40), ref: 'refs/heads/main' },
  ...{ attempt: 1, leaseMs: 1000, heartbeatMs: 100, source: { url: 'https://git.example.com/web.git' } },
  build: build.parse({ command: ['x'], output: 'x' }),
  ...more,
})
/** Whether the user can go there. */
function canEnter(uid: number, path: string): boolean {
  try {
    execFileSync('/bin/sh', ['-c', 'cd "$1"', 'sh', path], { uid, gid: uid, cwd: '/', stdio: 'ignore' })
    return true
  } catch {
    return false
  }
}
const lend = async (shelf: Shelf, pipeline: string, uid: number) => {
  const cache = await lendCache(shelf, job(pipeline), uid)
  if (!cache) throw new Error('another has it')
  return cache
}

test.before(() => chmod(temporary.path, 0o711))

test('what a build leaves is there for the next of its pipeline, which may have another uid', async () => {
  const shelf = await openShelf()
  const cache = await lend(shelf, 'web', first)
  await mkdir(join(cache.path, 'folder'))
  await writeFile(join(cache.path, 'folder/file'), 'kept', { mode: 0o600 })
  await symlink('folder/file', join(cache.path, 'link'))
  execFileSync('chown', ['-R', '-h', `${first}:${first}`, cache.path])
  await cache[Symbol.asyncDispose]()
  await using again = await lend(shelf, 'web', second)
  assert.is(again.path, cache.path)
  assert.is(await readFile(join(again.path, 'link'), 'utf8'), 'kept')
  for (const name of ['', 'folder', 'folder/file', 'link'])
    assert.is((await lstat(join(again.path, name))).uid, second, name)
})

test('only its user can enter it, and nobody while no job has it', async () => {
  const shelf = await openShelf()
  const cache = await lend(shelf, 'web', first)
  await chmod(cache.path, 0o777)
  assert.equal([canEnter(first, cache.path), canEnter(second, cache.path)], [true, false])
  await cache[Symbol.asyncDispose]()
  assert.equal([canEnter(first, cache.path), canEnter(second, cache.path)], [false, false])
})

test('a job of another pipeline, namespace or source has another', async () => {
  const shelf = await openShelf()
  const source = { url: 'https://git.example.com/other.git' }
  const jobs = [job('web'), job('other'), job('web', { namespace: 'others' }), job('web', { source })]
  const paths = []
  for (const each of jobs) {
    await using cache = await lendCache(shelf, each, first)
    paths.push(cache?.path)
  }
  assert.is(new Set(paths).size, 4)
})

test('a second job at the same time has none', async () => {
  const shelf = await openShelf()
  await using _ = await lend(shelf, 'web', first)
  assert.is(await lendCache(shelf, job('web'), second), undefined)
})

test('links, set-uid programs and devices do no harm to what they lead to', async () => {
  const shelf = await openShelf()
  const ours = join(temporary.path, 'ours')
  await writeFile(ours, 'of root', { mode: 0o600 })
  const cache = await lend(shelf, 'web', first)
  const at = (name: string) => join(cache.path, name)
  await link(ours, at('hardlink'))
  await symlink(ours, at('symlink'))
  await symlink('/etc', at('folder'))
  await writeFile(at('setuid'), 'x')
  await chown(at('setuid'), first, first)
  await chmod(at('setuid'), 0o6755)
  execFileSync('mkfifo', [at('fifo')])
  execFileSync('mknod', [at('device'), 'c', '1', '3'])
  await cache[Symbol.asyncDispose]()
  await using again = await lend(shelf, 'web', second)
  assert.equal((await readdir(again.path)).sort(), ['folder', 'symlink'])
  const { uid, mode, nlink } = await stat(ours)
  assert.equal([uid, mode & 0o777, nlink], [0, 0o600, 1])
  assert.is((await stat('/etc')).uid, 0)
})

test('folders too deep for a path are handed on, and removed', async () => {
  const shelf = await openShelf(20 << 20)
  const cache = await lend(shelf, 'web', first)
  const deeper =
    'n=0; while [ $n -lt 600 ]; do mkdir 0123456789 && cd -P 0123456789 2>/dev/null || exit 1; n=$((n + 1)); done; head -c "$1" /dev/zero >file'
  execFileSync('/bin/sh', ['-c', deeper, 'sh', '1000'], { cwd: cache.path, uid: first, gid: first })
  await cache[Symbol.asyncDispose]()
  const again = await lend(shelf, 'web', second)
  assert.equal(await readdir(again.path), ['0123456789'])
  execFileSync('/bin/sh', ['-c', 'head -c 15000000 /dev/zero >large'], { cwd: again.path, uid: second, gid: second })
  await again[Symbol.asyncDispose]()
  await using last = await lend(shelf, 'web', first)
  assert.equal(await readdir(last.path), [], 'over the limit it is dropped')
})

test('when all together are too large, those used least recently go', async () => {
  const shelf = await openShelf(10 << 20)
  const use = async (pipeline: string, bytes: number) => {
    await using cache = await lend(shelf, pipeline, first)
    const before = await readdir(cache.path)
    if (bytes > 0) await writeFile(join(cache.path, 'file'), Buffer.alloc(bytes, 1))
    return before
  }
  await use('a', 4 << 20)
  await use('b', 4 << 20)
  assert.equal(await use('a', 0), ['file'])
  await use('c', 4 << 20)
  assert.equal(await use('b', 0), [])
  assert.equal(await use('a', 0), ['file'])
  assert.equal(await use('c', 0), ['file'])
})

test('what a worker that died had lent is closed by whoever has the uid next', async () => {
  const path = join(temporary.path, 'died')
  const program = `const [shelf, cache, job, path] = JSON.parse(process.argv[1])
    const { Shelf } = await import(shelf); const { lendCache } = await import(cache)
    const lent = await lendCache(await Shelf.open({ path, maxBytes: 1e9, log: console }), job, ${first})
    console.log(lent.path); process.kill(process.pid, 'SIGKILL')`
  const args = ['shelf.ts', 'pipelineCache.ts'].map((it) => join(import.meta.dirname, it))
  let lent = ''
  try {
    execFileSync(process.execPath, ['--input-type=module', '-e', program, JSON.stringify([...args, job('web'), path])])
  } catch (error) {
    lent = String((error as { stdout: Buffer }).stdout).trim()
  }
  await writeFile(join(lent, 'file'), 'kept')
  assert.is(canEnter(first, lent), true)
  const shelf = await openShelf(1 << 30, path)
  await shelf.close(first)
  assert.is(canEnter(first, lent), false)
  await using again = await lend(shelf, 'web', second)
  assert.equal(await readdir(again.path), ['file'])
})

test('all of it may be deleted at any time', async () => {
  const path = join(temporary.path, 'deleted')
  const shelf = await openShelf(1 << 30, path)
  const cache = await lend(shelf, 'web', first)
  await rm(path, { recursive: true })
  await cache[Symbol.asyncDispose]()
  await using again = await lend(shelf, 'web', second)
  assert.equal(await readdir(again.path), [])
  assert.is(canEnter(second, again.path), true)
})

test('a folder that somebody else made is refused', async () => {
  const path = join(temporary.path, 'planted')
  await mkdir(path)
  await chown(path, first, first)
  assert.is(await openShelf(1 << 30, path).catch((error: { code: string }) => error.code), 'ConfigInvalid')
})

test('an entry that nobody put back counts, and one half removed goes', async () => {
  const path = join(temporary.path, 'left')
  const shelf = await openShelf(10 << 20, path)
  await mkdir(join(path, 'pipeline-left'))
  await writeFile(join(path, 'pipeline-left/file'), Buffer.alloc(9 << 20, 1))
  await mkdir(join(path, '.removed-1/deep'), { recursive: true })
  await shelf.close(first)
  assert.equal(await readdir(path), [], 'it is larger than half of all')
})

if (process.getuid?.() === 0) test.run()
else console.log('only root has builds run as users of their own')
