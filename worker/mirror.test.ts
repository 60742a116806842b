import { execFileSync } from 'node:child_process'
import { globSync, lstatSync } from 'node:fs'
import { mkdir, readdir, truncate, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { build } from '../api/pipeline.ts'
import type { ClaimedJob } from '../api/workerApi.ts'
import { startGitServer } from '../hack/parts/gitServer.ts'
import { type TemporaryDir, temporaryDir } from '../hack/parts/process.ts'
import { commit, git, makeRepository, push, type Repository } from '../hack/story/repositories.ts'
import { createLogger } from '../runtime/log.ts'
import { fetchCommit } from './checkout.ts'
import { Shelf } from './shelf.ts'

interface Context {
  dir: TemporaryDir
  repository: Repository
  shelf: Shelf
  /** Where mirrors are. */
  kept: string
}
const test = suite<Context>('mirror')
const log = createLogger('test', 'silent')
const signal = AbortSignal.timeout(120_000)
let count = 0

test.before.each(async (context) => {
  context.dir = await temporaryDir('shoal-mirror')
  context.repository = await makeRepository(context.dir.path, 'web')
  context.kept = join(context.dir.path, 'kept')
  context.shelf = await Shelf.open({ path: context.kept, maxBytes: 1 << 30, log })
  // More than a fetch of little needs.
  await writeFile(
    join(context.repository.work, 'large'),
    Buffer.from(Array.from({ length: 300_000 }, () => Math.random() * 256)),
  )
})
test.after.each(async ({ dir }) => {
  await dir[Symbol.asyncDispose]()
})

async function pushed(repository: Repository, text: string): Promise<string> {
  await writeFile(join(repository.work, 'file'), text)
  const id = await commit(repository, text)
  await push(repository)
  return id
}
/** Fetches the commit into a new repository, whose folder it returns. */
async function fetched(
  { dir, shelf }: Pick<Context, 'dir' | 'shelf'>,
  id: string,
  source: ClaimedJob['source'],
  namespace = 'demo',
) {
  const into = join(dir.path, `checkout-${++count}`)
  await mkdir(into)
  const job: ClaimedJob = {
    ...{ jobId: 1, token: 'x', namespace, name: 'job', pipeline: 'web', commit: id, ref: 'refs/heads/main' },
    ...{ attempt: 1, leaseMs: 1000, heartbeatMs: 100, source, build: build.parse({ command: ['x'], output: 'x' }) },
  }
  await fetchCommit({ job, dir: into, shelf, log, signal })
  return into
}
const codeOf = (promise: Promise<unknown>) =>
  promise.then(
    () => 'none',
    (error: { code: string }) => error.code,
  )
const textAt = (dir: string, id: string) => git(dir, 'show', `${id}:file`)
const mirrorsIn = (kept: string) => globSync(join(kept, 'git-*/mirror.git'))

test('of a second commit only what is new is fetched', async (context) => {
  using server = await startGitServer({ folder: context.dir.path })
  const source = { url: `${server.url}/web.git` }
  const first = await pushed(context.repository, 'one')
  assert.is(await textAt(await fetched(context, first, source), first), 'one')
  const sentFirst = server.sentBytes
  assert.ok(sentFirst > 300_000)
  const second = await pushed(context.repository, 'two')
  const dir = await fetched(context, second, source)
  assert.ok(server.sentBytes - sentFirst < 20_000, `${server.sentBytes - sentFirst} bytes`)
  assert.is(await textAt(dir, second), 'two')
  assert.is(await git(dir, 'rev-list', '--all', '--count', second), '1', 'it has no history')
  const sent = server.sentBytes
  await fetched(context, first, source)
  assert.is(server.sentBytes, sent, 'a commit that is there is not asked for again')
})

test('a checkout shares nothing with the mirror, and knows neither it nor the source', async (context) => {
  const id = await pushed(context.repository, 'one')
  using server = await startGitServer({ folder: context.dir.path, user: 'reader:hunter22' })
  const source = { url: `${server.url}/web.git`, username: 'reader', password: 'hunter22' }
  const dir = await fetched(context, id, source)
  const files = globSync(['**/*', '.git/**/*'], { cwd: dir }).map((path) => join(dir, path))
  assert.ok(files.length > 10)
  for (const file of files) {
    const { nlink } = lstatSync(file)
    assert.ok(lstatSync(file).isDirectory() || nlink === 1, file)
  }
  assert.not.ok(files.some((file) => file.endsWith('alternates')))
  const grep = (...where: string[]) =>
    execFileSync('sh', ['-c', 'grep -rlaE "hunter22|reader|mirror[.]git|127[.]0[.]0[.]1" "$@" || :', 'sh', ...where], {
      encoding: 'utf8',
    })
  assert.is(grep(dir), '')
  assert.is(execFileSync('sh', ['-c', 'grep -rla hunter22 "$1" || :', 'sh', context.kept], { encoding: 'utf8' }), '')
  assert.is(lstatSync(join(mirrorsIn(context.kept)[0] ?? '', '..')).mode & 0o777, 0o700)
})

test('a namespace does not get what another’s credentials have fetched', async (context) => {
  const id = await pushed(context.repository, 'one')
  using server = await startGitServer({ folder: context.dir.path, user: 'reader:hunter22' })
  const url = `${server.url}/web.git`
  await fetched(context, id, { url, username: 'reader', password: 'hunter22' })
  assert.is(await codeOf(fetched(context, id, { url }, 'others')), 'SourceUnreachable')
})

test('a server that gives no commit by its id is asked for the branch, and then only for what is new', async (context) => {
  using server = await startGitServer({ folder: context.dir.path, isOld: true })
  const source = { url: `${server.url}/web.git` }
  const old = await pushed(context.repository, 'one')
  await pushed(context.repository, 'two')
  const dir = await fetched(context, old, source)
  assert.is(await textAt(dir, old), 'one')
  assert.is(await git(dir, 'rev-list', '--all', '--count', old), '1', 'it has no history')
  const sent = server.sentBytes
  const third = await pushed(context.repository, 'three')
  const fourth = await pushed(context.repository, 'four')
  for (const [id, text] of [
    [third, 'three'],
    [fourth, 'four'],
  ] as const)
    assert.is(await textAt(await fetched(context, id, source), id), text)
  assert.ok(server.sentBytes - sent < 20_000, `${server.sentBytes - sent} bytes`)
  assert.is(await codeOf(fetched(context, 'f'.repeat(40), source)), 'CommitNotFound')
  assert.is(await textAt(await fetched(context, fourth, source), fourth), 'four')
})

test('several jobs at the same time get their commits', async (context) => {
  const source = { url: context.repository.bare }
  const ids = [
    await pushed(context.repository, 'one'),
    await pushed(context.repository, 'two'),
    await pushed(context.repository, 'three'),
  ]
  const dirs = await Promise.all([...ids, ...ids].map((id) => fetched(context, id, source)))
  for (const [n, dir] of dirs.entries()) assert.is(await git(dir, 'cat-file', '-t', ids[n % 3] ?? ''), 'commit')
  assert.is(mirrorsIn(context.kept).length, 1)
})

const faults: [what: string, fault: (mirror: string) => Promise<void>][] = [
  ['a lock that a killed fetch left', (mirror) => writeFile(join(mirror, 'shallow.lock'), '')],
  [
    'objects that are cut off',
    async (mirror) => {
      for (const object of globSync(join(mirror, 'objects/??/*'))) await truncate(object, 10)
    },
  ],
  ['no configuration', (mirror) => truncate(join(mirror, 'config'), 0)],
  ['a HEAD of nonsense', (mirror) => writeFile(join(mirror, 'HEAD'), 'nonsense')],
]
for (const [what, fault] of faults) {
  test(`a mirror with ${what} fails no job, and is made anew`, async (context) => {
    const source = { url: context.repository.bare }
    await fetched(context, await pushed(context.repository, 'one'), source)
    await fault(mirrorsIn(context.kept)[0] ?? '')
    const second = await pushed(context.repository, 'two')
    assert.is(await textAt(await fetched(context, second, source), second), 'two')
    const third = await pushed(context.repository, 'three')
    const dir = await fetched(context, third, source)
    assert.is(await textAt(dir, third), 'three')
    assert.is(await git(mirrorsIn(context.kept)[0] ?? '', 'cat-file', '-t', third), 'commit')
  })
}

test('a mirror that was being fetched into when its worker died is made anew', async (context) => {
  const source = { url: context.repository.bare }
  const id = await pushed(context.repository, 'one')
  await fetched(context, id, source)
  const [mirror = ''] = mirrorsIn(context.kept)
  await writeFile(join(mirror, 'left'), '')
  execFileSync('rm', [join(mirror, '../bytes')])
  await fetched(context, id, source)
  assert.not.ok((await readdir(mirror)).includes('left'))
})

test('a source that is away keeps its mirror', async (context) => {
  using server = await startGitServer({ folder: context.dir.path })
  const source = { url: `${server.url}/web.git` }
  const id = await pushed(context.repository, 'one')
  await fetched(context, id, source)
  server[Symbol.dispose]()
  assert.is(await codeOf(fetched(context, 'f'.repeat(40), source)), 'SourceUnreachable')
  assert.is(await textAt(await fetched(context, id, source), id), 'one')
})

test.run()
