import { connect } from 'node:tls'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { AdminClient, ApiError } from './adminClient.ts'
import { type ApiServer, startApiServer } from './apiServer.ts'
import { applyCrds } from './crds.ts'
import { temporaryDir, until } from './process.ts'

const test = suite('parts: API server')

let server: ApiServer
test.before(async () => {
  server = await startApiServer({ own: true })
})
test.after(async () => {
  await server[Symbol.asyncDispose]()
})

const review = async (token: string, audiences?: string[]) => {
  const answer = (await server.request('POST', '/apis/authentication.k8s.io/v1/tokenreviews', {
    apiVersion: 'authentication.k8s.io/v1',
    kind: 'TokenReview',
    spec: { token, audiences },
  })) as { status: { authenticated?: boolean; user: { username?: string } } }
  return answer.status.authenticated ? answer.status.user.username : undefined
}

test('its certificate is verified by the authority in the kubeconfig, and by no other', async () => {
  const { hostname, port } = new URL(server.url)
  const error = await new Promise((resolve) => {
    const socket = connect({ host: hostname, port: Number(port) }, () => resolve(undefined))
    socket.once('error', resolve).once('close', () => socket.destroy())
  })
  assert.match(String(error), /unable to verify|self-signed|local issuer/)
  await using client = new AdminClient(server.kubeconfigFile)
  assert.is(await client.request('GET', '/readyz'), 'ok')
})

test('a token for an audience is good for that one alone', async () => {
  const hub = await server.serviceAccountToken('shoal-region-eu', 'region', ['shoal-hub'])
  const own = await server.serviceAccountToken('shoal-region-eu', 'region')
  const name = 'system:serviceaccount:shoal-region-eu:region'
  assert.is(await review(hub, ['shoal-hub']), name)
  assert.is(await review(hub), undefined)
  assert.is(await review(own), name)
  assert.is(await review(own, ['shoal-hub']), undefined)
})

test('a ServiceAccount may do what RBAC gives it, which is nothing at first', async () => {
  const token = await server.serviceAccountToken('team', 'deployer')
  await using client = new AdminClient(await server.kubeconfigFor(token, 'team'))
  const error = await client.request('GET', '/api/v1/namespaces/team/secrets').catch((e) => e)
  assert.ok(error instanceof ApiError)
  assert.equal([error.code, error.reason], [403, 'Forbidden'])
})

test('the keys of its tokens are public', async () => {
  const { keys } = await server.jwks()
  assert.is(keys.length, 1)
  assert.is(server.issuer, 'https://kubernetes.default.svc.cluster.local')
})

test('the CRDs are established and can be listed, also when applied twice', async () => {
  await applyCrds(server)
  await applyCrds(server)
  const list = (await server.request('GET', '/apis/shoal.dev/v1alpha1/pipelines')) as { kind: string }
  assert.is(list.kind, 'PipelineList')
})

test('objects outlive stop, kill and a new start', async () => {
  await server.createNamespace('kept')
  await server.stop()
  assert.instance(await server.request('GET', '/readyz').catch((e) => e), Error)
  await server.start()
  await server.createNamespace('kept-too')
  await server.kill()
  await server.start()
  await until('namespaces', () => server.request('GET', '/api/v1/namespaces/kept'))
  await until('namespaces', () => server.request('GET', '/api/v1/namespaces/kept-too'))
})

test('SHOAL_KUBECONFIG is used as it is, and never stopped', async () => {
  await using dir = await temporaryDir('shoal-parts')
  const before = process.env.SHOAL_KUBECONFIG
  process.env.SHOAL_KUBECONFIG = server.kubeconfigFile
  try {
    {
      await using given = await startApiServer({ dir: dir.path })
      assert.is(given.url, server.url)
      assert.is(given.token, server.token)
      assert.is(given.issuer, server.issuer)
      assert.not(given.own)
      await given.createNamespace('given')
      assert.throws(() => given.stop(), /not ours to stop/)
    }
    assert.ok(await server.request('GET', '/api/v1/namespaces/given'))
  } finally {
    if (before === undefined) delete process.env.SHOAL_KUBECONFIG
    else process.env.SHOAL_KUBECONFIG = before
  }
})

test.run()
