import { existsSync } from 'node:fs'
import { mkdir, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { startGitServer } from '../../hack/parts/gitServer.ts'
import { type TemporaryDir, temporaryDir } from '../../hack/parts/process.ts'
import { commit, makeRepository, push, type Repository } from '../../hack/story/repositories.ts'
import { branchTip, fetchCommit, yamlFiles } from './git.ts'

const test = suite<{ dir: TemporaryDir; repository: Repository; signal: AbortSignal }>('configuration source')

test.before.each(async (context) => {
  context.dir = await temporaryDir('configsource')
  context.repository = await makeRepository(context.dir.path, 'config')
  context.signal = AbortSignal.timeout(20_000)
})
test.after.each(async ({ dir }) => {
  await dir[Symbol.asyncDispose]()
})

async function pushed(repository: Repository, files: Record<string, string>) {
  for (const [path, text] of Object.entries(files)) {
    await mkdir(join(repository.work, path, '..'), { recursive: true })
    await writeFile(join(repository.work, path), text)
  }
  const id = await commit(repository, 'Change')
  await push(repository)
  return id
}

test('reads a repository that wants a user and password', async ({ dir, repository, signal }) => {
  const id = await pushed(repository, { 'a.yaml': 'a: 1\n' })
  using server = await startGitServer({ folder: dir.path, user: 'reader:se cret' })
  const remote = { url: `${server.url}/config.git`, branch: 'main', username: 'reader', password: 'se cret' }
  assert.is(await branchTip(remote, signal), id)
  const into = { dir: join(dir.path, 'fetched'), signal }
  await fetchCommit(remote, id, into)
  assert.equal(await yamlFiles(id, { ...into, path: '.' }), [{ path: 'a.yaml', text: 'a: 1\n' }])
})

test('says so, and not the password, when the password is wrong', async ({ dir, repository, signal }) => {
  await pushed(repository, { 'a.yaml': 'a: 1\n' })
  using server = await startGitServer({ folder: dir.path, user: 'reader:right' })
  const remote = { url: `${server.url}/config.git`, branch: 'main', username: 'reader', password: 'wrong-one' }
  await branchTip(remote, signal).then(
    () => assert.unreachable(),
    (error: { code: string; message: string }) => {
      assert.is(error.code, 'SourceUnreachable')
      assert.not.match(error.message, /wrong-one/)
    },
  )
})

test('takes only YAML files of the folder asked for', async ({ dir, repository, signal }) => {
  const files = { 'a.yaml': 'a', 'deploy/b.yml': 'b', 'deploy/sub/c.yaml': 'c', 'deploy/d.json': 'd' }
  const id = await pushed(repository, files)
  const remote = { url: repository.bare, branch: 'main' }
  const into = { dir: join(dir.path, 'fetched'), signal }
  await fetchCommit(remote, id, into)
  const paths = async (path: string) => (await yamlFiles(id, { ...into, path })).map((file) => file.path)
  assert.equal(await paths('deploy/'), ['deploy/b.yml', 'deploy/sub/c.yaml'])
  assert.equal(await paths('./deploy/sub'), ['deploy/sub/c.yaml'])
  for (const path of ['../deploy', 'deploy/../..', 'nowhere', 'a.yaml']) {
    await yamlFiles(id, { ...into, path }).then(
      () => assert.unreachable(path),
      (error: { code: string }) => assert.is(error.code, 'ConfigRepoInvalid'),
    )
  }
})

test('refuses a file larger than 1 MiB', async ({ dir, repository, signal }) => {
  const id = await pushed(repository, { 'a.yaml': '#'.repeat((1 << 20) + 1) })
  const into = { dir: join(dir.path, 'fetched'), signal }
  await fetchCommit({ url: repository.bare, branch: 'main' }, id, into)
  await yamlFiles(id, { ...into, path: '.' }).then(
    () => assert.unreachable(),
    (error: { message: string }) => assert.match(error.message, /a\.yaml is larger than/),
  )
})

test('runs no command that a URL names', async ({ dir, signal }) => {
  const proof = join(dir.path, 'proof')
  for (const url of [`ext::touch ${proof}`, `--upload-pack=touch ${proof}`]) {
    await branchTip({ url, branch: 'main' }, signal).then(
      () => assert.unreachable(url),
      (error: { code: string }) => assert.is(error.code, 'SourceUnreachable'),
    )
  }

  assert.not.ok(existsSync(proof))
})

test.run()
