import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { ShoalError } from '../api/errors.ts'
import { startApiServer } from '../hack/parts/apiServer.ts'
import { FaultyProxy } from '../hack/parts/faultyProxy.ts'
import { temporaryDir, until } from '../hack/parts/process.ts'
import { type AnyObject, type ApiError, Cluster, type WatchEvent } from './cluster.ts'
import { core } from './core.ts'
import { EventRecorder } from './events.ts'
import { TokenReviewer, verifyServiceAccountToken } from './identity.ts'
import { createLogger } from './log.ts'

const test = suite('cluster')
const api = await startApiServer()
const cluster = Cluster.load({ kubeconfig: api.kubeconfigFile })
const namespace = `cluster-test-${process.pid}`
await api.createNamespace(namespace)

const configMap = (name: string, data: Record<string, string>, more: Record<string, unknown> = {}) => ({
  metadata: { namespace, name, ...more },
  data,
})
type ConfigMap = AnyObject & { data?: Record<string, string>; metadata: { uid: string } }

const thrown = (work: Promise<unknown>): Promise<ApiError> =>
  work.then(
    () => assert.unreachable('it did not throw'),
    (error) => error,
  ) as Promise<ApiError>

test('what is not there is undefined; what is there twice, or deleted twice, is said or borne', async () => {
  assert.is(await cluster.get(core.ConfigMap, namespace, 'none'), undefined)
  await cluster.create(core.ConfigMap, configMap('once', {}))
  const again = await thrown(cluster.create(core.ConfigMap, configMap('once', {})))
  assert.equal([again.status, again.reason, again.code], [409, 'AlreadyExists', 'Conflict'])
  await cluster.delete(core.ConfigMap, namespace, 'once', { uid: '00000000-0000-0000-0000-000000000000' }).then(
    () => assert.unreachable('the precondition was ignored'),
    (error: ApiError) => assert.is(error.status, 409),
  )
  await cluster.delete(core.ConfigMap, namespace, 'once')
  await cluster.delete(core.ConfigMap, namespace, 'once')
})

test('two managers that apply the same field conflict, unless forced; each keeps its own fields', async () => {
  const apply = (data: Record<string, string>, fieldManager: string, force = false) =>
    cluster.apply<ConfigMap>(core.ConfigMap, configMap('shared', data), { fieldManager, force })
  await apply({ a: '1' }, 'first')
  await apply({ b: '1' }, 'second')
  const conflict = await thrown(apply({ a: '2' }, 'second'))
  assert.equal([conflict.status, conflict.code], [409, 'Conflict'])
  const taken = await apply({ a: '2' }, 'second', true)
  assert.equal(taken.data, { a: '2' }, 'the second no longer says b')
})

test('an apply with an old resourceVersion is refused; a dry run changes nothing', async () => {
  const one = await cluster.create<ConfigMap>(core.ConfigMap, configMap('versioned', { a: '1' }))
  const { resourceVersion } = one.metadata
  const dry = { fieldManager: 'test', dryRun: true }
  const would = await cluster.apply<ConfigMap>(core.ConfigMap, configMap('versioned', { a: '2' }), dry)
  assert.is(would.data?.a, '2')
  await cluster.apply(core.ConfigMap, configMap('versioned', { a: '3' }, { resourceVersion }), { fieldManager: 'test' })
  const stale = await thrown(
    cluster.apply(core.ConfigMap, configMap('versioned', { a: '4' }, { resourceVersion }), { fieldManager: 'test' }),
  )
  assert.is(stale.status, 409)
  const now = await cluster.get<ConfigMap>(core.ConfigMap, namespace, 'versioned')
  assert.is(now?.data?.a, '3')
  assert.is((await thrown(cluster.replace(core.ConfigMap, { ...one, data: {} }))).status, 409)
  await cluster.patch(core.ConfigMap, { namespace, name: 'versioned' }, { data: { a: null, b: '5' } })
  await cluster.patch(
    core.ConfigMap,
    { namespace, name: 'versioned' },
    [{ op: 'add', path: '/data/c', value: '6' }],
    'json',
  )
  assert.equal((await cluster.get<ConfigMap>(core.ConfigMap, namespace, 'versioned'))?.data, { b: '5', c: '6' })
})

test('lists by pages and labels, and begins anew when the snapshot of its pages is gone', async () => {
  await using proxy = await FaultyProxy.start(api)
  await using paged = Cluster.load({ kubeconfig: proxy.kubeconfigFile })
  await Promise.all(
    Array.from({ length: 60 }, (_, i) =>
      cluster.create(core.ConfigMap, configMap(`page-${i}`, {}, { labels: { page: 'yes' } })),
    ),
  )
  let gone = 0
  proxy.refuse = (line) =>
    line.includes('continue=') && ++gone === 2 ? { status: 410, body: '{"reason":"Expired"}' } : undefined
  const { items } = await paged.list<ConfigMap>(core.ConfigMap, { namespace, labelSelector: 'page=yes', limit: 20 })
  assert.is(new Set(items.map(({ metadata }) => metadata.name)).size, 60)
  assert.is(items.length, 60)
  assert.ok(gone > 2)
})

test('a read survives a server that is away for a moment; a write is never made twice', async () => {
  await using proxy = await FaultyProxy.start(api)
  await using shaken = Cluster.load({ kubeconfig: proxy.kubeconfigFile })
  let refusals = 0
  proxy.refuse = () => (++refusals % 2 === 1 ? { status: 503, body: 'a proxy’s page' } : undefined)
  await shaken.get(core.ConfigMap, namespace, 'none')
  proxy.requests.length = 0
  const error = await thrown(shaken.create(core.ConfigMap, configMap('written', {})))
  assert.equal([error.status, error.code, error.message], [503, 'Unavailable', 'a proxy’s page'])
  assert.is(proxy.count('POST'), 1)
})

test('no answer in time is Timeout, no server Unavailable, and an abort the caller’s own', async () => {
  await using proxy = await FaultyProxy.start(api)
  await using slow = Cluster.load({ kubeconfig: proxy.kubeconfigFile })
  proxy.hang = true
  const late = await thrown(slow.within({ timeoutMs: 100 }).get(core.ConfigMap, namespace, 'x'))
  assert.equal([late.name, late.code], ['Transient', 'Timeout'])
  const reason = new Error('stop')
  assert.is(
    await thrown(slow.within({ signal: AbortSignal.abort(reason) }).get(core.ConfigMap, namespace, 'x')),
    reason,
  )
  proxy.hang = false
  await using dir = await temporaryDir('shoal-cluster')
  const kubeconfig = join(dir.path, 'kubeconfig')
  const text = { 'current-context': 'c', contexts: [{ name: 'c', context: { cluster: 'c', user: 'u' } }] }
  const clusters = [{ name: 'c', cluster: { server: 'https://127.0.0.1:1' } }]
  await writeFile(kubeconfig, JSON.stringify({ ...text, clusters, users: [{ name: 'u', user: { token: 'x' } }] }))
  await using nowhere = Cluster.load({ kubeconfig })
  const away = await thrown(nowhere.get(core.ConfigMap, namespace, 'x'))
  assert.equal([away.name, away.code], ['Transient', 'Unavailable'])
  assert.throws(
    () => Cluster.load({ kubeconfig: join(dir.path, 'none') }),
    (error: unknown) => error instanceof ShoalError && error.code === 'ConfigInvalid',
  )
})

test('of a hundred requests at once no more than 32 are with the server', async () => {
  await using proxy = await FaultyProxy.start(api)
  await using busy = Cluster.load({ kubeconfig: proxy.kubeconfigFile })
  await Promise.all(Array.from({ length: 100 }, () => busy.get(core.ConfigMap, namespace, 'versioned')))
  assert.is(proxy.requests.length, 100)
  assert.ok(proxy.mostAtOnce > 1 && proxy.mostAtOnce <= 32, `${proxy.mostAtOnce} at once`)
})

test('watches from a version on, with the server’s events', async () => {
  const { resourceVersion } = await cluster.list(core.ConfigMap, { namespace })
  const stop = new AbortController()
  const events: WatchEvent[] = []
  const watching = (async () => {
    const selection = { namespace, resourceVersion, timeoutSeconds: 60 }
    for await (const event of cluster.watch(core.ConfigMap, selection, stop.signal)) events.push(event)
  })()
  await cluster.create(core.ConfigMap, configMap('watched', {}))
  await cluster.delete(core.ConfigMap, namespace, 'watched')
  await until('both events', () => events.length >= 2)
  assert.equal(
    events.map(({ type }) => type),
    ['ADDED', 'DELETED'],
  )
  stop.abort(new Error('enough'))
  assert.is((await thrown(watching)).message, 'enough')
})

test('a certificate authority and a token that change on disk are followed without a restart', async () => {
  await using dir = await temporaryDir('shoal-cluster')
  const [caFile, tokenFile, kubeconfig] = ['ca', 'token', 'kubeconfig'].map((name) => join(dir.path, name)) as [
    string,
    string,
    string,
  ]
  await writeFile(caFile, api.ca)
  await writeFile(tokenFile, api.token)
  const config = {
    'current-context': 'c',
    contexts: [{ name: 'c', context: { cluster: 'c', user: 'u' } }],
    clusters: [{ name: 'c', cluster: { server: api.url, 'certificate-authority': 'ca' } }],
    users: [{ name: 'u', user: { tokenFile: 'token' } }],
  }
  await writeFile(kubeconfig, JSON.stringify(config))
  await using rotating = Cluster.load({ kubeconfig })
  const get = () => rotating.get(core.Namespace, undefined, namespace)
  assert.ok(await get())
  await writeFile(caFile, '-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n')
  assert.is((await thrown(get())).code, 'Unavailable')
  await writeFile(caFile, `${api.ca}\n`)
  assert.ok(await get())
})

test('acting as a ServiceAccount has that account’s rights', async () => {
  await api.serviceAccountToken(namespace, 'deployer')
  const error = await thrown(
    cluster.apply(core.ConfigMap, configMap('impersonated', {}), {
      fieldManager: 'test',
      impersonate: `system:serviceaccount:${namespace}:deployer`,
    }),
  )
  assert.is(error.code, 'Forbidden')
  assert.match(error.message, 'deployer')
})

test('a token is reviewed for its audience, and not asked about twice', async () => {
  await using proxy = await FaultyProxy.start(api)
  await using behind = Cluster.load({ kubeconfig: proxy.kubeconfigFile })
  const reviewer = new TokenReviewer(behind, 'shoal-hub')
  const [good, other] = await Promise.all([
    api.serviceAccountToken(namespace, 'worker', ['shoal-hub']),
    api.serviceAccountToken(namespace, 'worker', ['someone-else']),
  ])
  const callers = await Promise.all([reviewer.review(good), reviewer.review(good), reviewer.review(good)])
  assert.is(callers[0]?.username, `system:serviceaccount:${namespace}:worker`)
  assert.ok(callers[0]?.groups.includes(`system:serviceaccounts:${namespace}`))
  assert.is(proxy.count('POST'), 1)
  for (const token of [other, 'nonsense', `${good}x`])
    assert.is((await thrown(reviewer.review(token))).code, 'Unauthorized')
  const before = proxy.count('POST')
  assert.is((await thrown(reviewer.review('nonsense'))).code, 'Unauthorized')
  assert.is(proxy.count('POST'), before)
  proxy.refuse = () => ({ status: 401 })
  const fresh = await api.serviceAccountToken(namespace, 'other-worker', ['shoal-hub'])
  const ours = await thrown(reviewer.review(fresh))
  assert.is(ours.code, 'Unavailable', 'our own credentials are not the caller’s fault')
  proxy.refuse = () => undefined
  assert.ok(await reviewer.review(fresh))
})

test('a ServiceAccount token is verified by its cluster’s keys alone', async () => {
  const token = await api.serviceAccountToken(namespace, 'shoal-agent', ['shoal-region-eu'])
  const real = { name: 'real', issuer: api.issuer, jwks: JSON.stringify(await api.jwks()) }
  const empty = { name: 'empty', issuer: api.issuer, jwks: '{"keys":[]}' }
  const broken = { name: 'broken', issuer: api.issuer, jwks: 'not JSON' }
  const identity = await verifyServiceAccountToken(token, 'shoal-region-eu', [broken, empty, real])
  assert.equal(identity, { cluster: 'real', namespace, serviceAccount: 'shoal-agent', node: undefined })
  const refused = async (text: string, audience: string, clusters: (typeof real)[]) =>
    assert.is((await thrown(verifyServiceAccountToken(text, audience, clusters))).code, 'Unauthorized')
  await refused(token, 'shoal-region-us', [real])
  await refused(token, 'shoal-region-eu', [empty])
  await refused(token, 'shoal-region-eu', [])
  await refused(token, 'shoal-region-eu', [{ ...real, issuer: 'https://elsewhere' }])
  await refused(`${token.slice(0, -4)}AAAA`, 'shoal-region-eu', [real])
})

test('an event is sent once, and a chatty reason is cut short', async () => {
  const subject = await cluster.create<ConfigMap>(core.ConfigMap, configMap('eventful', {}))
  const recorder = new EventRecorder({ cluster, component: 'test', log: createLogger('test', 'silent') })
  const about = { apiVersion: 'v1', kind: 'ConfigMap', metadata: subject.metadata }
  for (let i = 0; i < 5; i++) recorder.record(about, 'Normal', 'Built', 'the build succeeded')
  for (let i = 0; i < 50; i++) recorder.record(about, 'Warning', 'Copying', `${i} of 50`)
  const events = await until('the events', async () => {
    const { items } = await cluster.list<AnyObject & { reason: string; regarding: { uid: string } }>(core.Event, {
      namespace,
    })
    const ours = items.filter(({ regarding }) => regarding.uid === subject.metadata.uid)
    return ours.length >= 11 ? ours : undefined
  })
  assert.is(events.length, 1 + EventRecorder.notesPerReason)
  assert.is(events.filter(({ reason }) => reason === 'Built').length, 1)
})

test.after(async () => {
  await cluster.delete(core.Namespace, undefined, namespace)
  await cluster[Symbol.asyncDispose]()
  await api[Symbol.asyncDispose]()
})

test.run()
