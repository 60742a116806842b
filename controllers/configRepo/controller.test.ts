import { symlink, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { ConfigRepo } from '../../api/configRepo.ts'
import { type ApiServer, startApiServer } from '../../hack/parts/apiServer.ts'
import { applyCrds } from '../../hack/parts/crds.ts'
import { type TemporaryDir, temporaryDir, until } from '../../hack/parts/process.ts'
import { commit, git, makeRepository, push, type Repository } from '../../hack/story/repositories.ts'
import { systemClock } from '../../runtime/clock.ts'
import { Cluster } from '../../runtime/cluster.ts'
import { core } from '../../runtime/core.ts'
import { createLogger } from '../../runtime/log.ts'
import { Metrics } from '../../runtime/metrics.ts'
import { Reflector } from '../../runtime/reflector.ts'
import { configRepoController } from './controller.ts'

const test = suite('ConfigRepo')
const stop = new AbortController()
let server: ApiServer
let cluster: Cluster
let dir: TemporaryDir
let running: Promise<unknown>
let count = 0

test.before(async () => {
  ;[server, dir] = await Promise.all([startApiServer(), temporaryDir('configrepo')])
  await applyCrds(server)
  cluster = Cluster.load({ kubeconfig: server.kubeconfigFile })
  const log = createLogger('test', 'silent')
  const configRepos = new Reflector({ cluster, resource: ConfigRepo, parse: ConfigRepo.parse, log })
  const controller = configRepoController({ cluster, configRepos, log, metrics: new Metrics(), clock: systemClock })
  running = Promise.all([configRepos.run(stop.signal), controller.run(stop.signal)])
})

test.after(async () => {
  stop.abort()
  await running
  await cluster[Symbol.asyncDispose]()
  await server[Symbol.asyncDispose]()
  await dir[Symbol.asyncDispose]()
})

/** A namespace with a ServiceAccount that may write ConfigMaps and GoalStates, a repository, and its ConfigRepo. */
async function given(files: Record<string, string>, spec: { serviceAccountName?: string } = {}) {
  const namespace = `team-${++count}`
  await server.createNamespace(namespace)
  const rules = [
    { apiGroups: [''], resources: ['configmaps'], verbs: ['*'] },
    { apiGroups: ['shoal.dev'], resources: ['goalstates'], verbs: ['*'] },
  ]
  const metadata = { name: 'deployer', namespace }
  const manager = { fieldManager: 'test' }
  await cluster.apply(core.ServiceAccount, { metadata }, manager)
  await cluster.apply(core.Role, { metadata, ...{ rules } }, manager)
  const roleRef = { apiGroup: 'rbac.authorization.k8s.io', kind: 'Role', name: 'deployer' }
  const subjects = [{ kind: 'ServiceAccount', name: 'deployer', namespace }]
  await cluster.apply(core.RoleBinding, { metadata, ...{ roleRef, subjects } }, manager)
  const repository = await makeRepository(join(dir.path, namespace), 'config')
  const id = await merge(repository, files)
  const repo = ConfigRepo.make(
    { name: 'config', namespace },
    { url: repository.bare, interval: '200ms', serviceAccountName: 'deployer', ...spec },
  )
  await cluster.apply(ConfigRepo, repo, manager)
  return { namespace, repository, id }
}

async function merge(repository: Repository, files: Record<string, string>) {
  for (const [path, text] of Object.entries(files)) await writeFile(join(repository.work, path), text)
  const id = await commit(repository, 'Change')
  await push(repository)
  return id
}

const configMap = (name: string, value: string, more = '') =>
  `apiVersion: v1\nkind: ConfigMap\nmetadata: {name: ${name}${more}}\ndata: {value: "${value}"}\n`

const read = async (namespace: string, name: string) =>
  (await cluster.get<{ data: { value: string } }>(core.ConfigMap, namespace, name))?.data.value

const statusOf = async (namespace: string) =>
  ConfigRepo.parse(await cluster.get(ConfigRepo, namespace, 'config')).status

const ready = (namespace: string, id: string) =>
  until(`${id} is applied`, async () => {
    const status = await statusOf(namespace)
    const isReady = status?.conditions?.some(({ type, status }) => type === 'Ready' && status === 'True')
    return isReady && status?.appliedCommit === id ? status : undefined
  })

const stalled = (namespace: string, message: RegExp) =>
  until(`it is stalled with ${message}`, async () => {
    const conditions = (await statusOf(namespace))?.conditions ?? []
    return conditions.find((it) => it.type === 'Stalled' && it.status === 'True' && message.test(it.message))
  })

test('applies what is merged, and the next merge too', async () => {
  const { namespace, repository, id } = await given({
    'a.yaml': `${configMap('a', '1')}---\n# nothing\n---\n${configMap('b', '1')}`,
    'c.txt': 'no YAML',
  })
  const status = await ready(namespace, id)
  assert.equal(status.objects, ['ConfigMap/a', 'ConfigMap/b'])
  assert.is(await read(namespace, 'b'), '1')
  const next = await merge(repository, { 'a.yaml': configMap('a', '2') })
  await ready(namespace, next)
  assert.is(await read(namespace, 'a'), '2')
  assert.is(await read(namespace, 'b'), '1', 'what is gone from the repository is left as it is')
})

test('names file and line of malformed YAML, and leaves everything as it was', async () => {
  const { namespace, repository, id } = await given({ 'a.yaml': configMap('a', '1') })
  const other = await given({ 'a.yaml': configMap('a', '1') })
  await ready(namespace, id)
  await merge(repository, {
    'a.yaml': configMap('a', '2'),
    'b.yaml': 'apiVersion: v1\nkind: [ConfigMap\nmetadata: {}\n',
  })
  const condition = await stalled(namespace, /^b\.yaml:3: /)
  assert.is(condition.reason, 'ConfigRepoInvalid')
  assert.is(await read(namespace, 'a'), '1')
  assert.is((await statusOf(namespace))?.appliedCommit, id, 'the last commit that was applied is still named')
  await ready(other.namespace, other.id)
  const fixed = await merge(repository, { 'b.yaml': '# later\n' })
  await ready(namespace, fixed)
  assert.is(await read(namespace, 'a'), '2')
})

test('applies nothing of a commit when the API server refuses one of its objects', async () => {
  const goal =
    'apiVersion: shoal.dev/v1alpha1\nkind: GoalState\nmetadata: {name: web}\nspec: {artifactRef: {name: x}}\n'
  const { namespace } = await given({ 'a.yaml': configMap('a', '1'), 'b.yaml': `# a goal\n${goal}` })
  await stalled(namespace, /^b\.yaml:2: GoalState\/web: .*activation/)
  assert.is(await read(namespace, 'a'), undefined)
})

test('refuses what its ServiceAccount may not write, until it may', async () => {
  const { namespace, id } = await given({ 'a.yaml': configMap('a', '1') }, { serviceAccountName: 'nobody' })
  await stalled(namespace, /^a\.yaml:1: ConfigMap\/a: .*forbidden.*nobody|nobody.*cannot patch/)
  await cluster.patch(
    core.RoleBinding,
    { namespace, name: 'deployer' },
    { subjects: [{ kind: 'ServiceAccount', name: 'nobody', namespace }] },
  )
  await ready(namespace, id)
})

test('writes to no other namespace and to no object without one', async () => {
  const other = await given({ 'a.yaml': configMap('a', '1', ', namespace: default') })
  await stalled(other.namespace, /^a\.yaml:1: namespace default; only team-/)
  const global = await given({ 'a.yaml': 'apiVersion: v1\nkind: Namespace\nmetadata: {name: new}\n' })
  await stalled(global.namespace, /^a\.yaml:1: Namespace belongs to no namespace/)
  const unknown = await given({ 'a.yaml': 'apiVersion: v1\nkind: Nothing\nmetadata: {name: new}\n' })
  await stalled(unknown.namespace, /^a\.yaml:1: v1 has no kind Nothing/)
})

test('follows no symlink out of the repository', async () => {
  const { namespace, repository, id } = await given({ 'a.yaml': configMap('a', '1') })
  await ready(namespace, id)
  await writeFile(join(dir.path, 'outside.yaml'), configMap('outside', '1'))
  await symlink(join(dir.path, 'outside.yaml'), join(repository.work, 'b.yaml'))
  const next = await merge(repository, {})
  await ready(namespace, next)
  assert.is(await read(namespace, 'outside'), undefined)
})

test('says that a branch or repository is not there', async () => {
  const { namespace, repository, id } = await given({ 'a.yaml': configMap('a', '1') })
  await ready(namespace, id)
  await cluster.patch(ConfigRepo, { namespace, name: 'config' }, { spec: { branch: 'release' } })
  await stalled(namespace, /has no branch release/)
  await git(repository.work, 'push', '--quiet', 'origin', 'main:release')
  await ready(namespace, id)
  await cluster.patch(ConfigRepo, { namespace, name: 'config' }, { spec: { url: join(dir.path, 'nowhere') } })
  await until('the repository is unreachable', async () => {
    const conditions = (await statusOf(namespace))?.conditions ?? []
    return conditions.find((it) => it.type === 'Reconciling' && it.reason === 'SourceUnreachable')
  })
})

test.run()
