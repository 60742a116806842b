import { execFile } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { Artifact } from '../../api/artifact.ts'
import { fetchAnswer } from '../../api/artifactApi.ts'
import { GoalState } from '../../api/goalState.ts'
import { hashOutput } from '../../artifacts/hashOutput.ts'
import { descriptorKey } from '../../artifacts/key.ts'
import { Store } from '../../artifacts/store.ts'
import { startApiServer } from '../../hack/parts/apiServer.ts'
import { applyCrds } from '../../hack/parts/crds.ts'
import { temporaryDir } from '../../hack/parts/process.ts'
import { startStore } from '../../hack/parts/store.ts'
import { ApiClient } from '../../runtime/apiClient.ts'
import { Cluster } from '../../runtime/cluster.ts'
import { core } from '../../runtime/core.ts'
import { TokenReviewer } from '../../runtime/identity.ts'
import { createLogger } from '../../runtime/log.ts'
import { Metrics } from '../../runtime/metrics.ts'
import { createServer, listen } from '../../runtime/server.ts'
import { registerFetchRoute } from './fetchRoute.ts'

const test = suite('what a deploy fetches')
await using stack = new AsyncDisposableStack()
const [api, storeServer, dir] = await Promise.all([startApiServer({ own: true }), startStore(), temporaryDir('fetch')])
for (const part of [api, storeServer, dir]) stack.use(part)
await Promise.all([applyCrds(api), storeServer.createBucket('blobs')])
const namespace = 'demo'
await api.createNamespace(namespace)
const cluster = stack.use(Cluster.load({ kubeconfig: api.kubeconfigFile }))
const store = stack.use(new Store({ ...storeServer, bucket: 'blobs' }))

const artifacts = new Map<string, Artifact>()
const server = createServer({ log: createLogger('test', 'silent'), metrics: new Metrics() })
registerFetchRoute(server, {
  ...{ cluster, tokens: new TokenReviewer(cluster, undefined) },
  artifact: (key) => artifacts.get(key),
  homeStore: async () => store,
})
const { url } = await listen(server, { host: '127.0.0.1', port: 0 })
stack.defer(() => server.close())
const parts = stack.move()
test.after(() => parts.disposeAsync())

const blockBytes = 16 << 10
/** Chunks are at most so long; where one changes, the next may too. */
const nearBytes = 4 * (256 << 10)

/** As it is after its build: the descriptor is in the bucket, and the object in the API server. */
async function built(name: string, bytes: Uint8Array): Promise<void> {
  await writeFile(join(dir.path, name), bytes)
  const output = await hashOutput(join(dir.path, name), { name: 'web' })
  const key = `${namespace}/${name}/1`
  await store.put(descriptorKey(key), output.descriptor)
  const { digest, sizeBytes, partSizeBytes, checksum, infoHash, descriptorDigest } = output
  const made = Artifact.make(
    { name, namespace },
    {
      ...{ pipelineRef: 'web', commit: 'a'.repeat(40), digest, sizeBytes, key, partSizeBytes, checksum },
      ...{ descriptor: { infoHash, digest: descriptorDigest }, regions: ['eu'] },
    },
  )
  artifacts.set(`${namespace}/${name}`, Artifact.parse(await cluster.apply(Artifact, made, { fieldManager: 'test' })))
}

/** A person who may do this with artifacts and goals. */
async function person(name: string, verbs: string[]): Promise<string> {
  const rules = [{ apiGroups: ['shoal.dev'], resources: ['artifacts', 'goalstates'], verbs }]
  await cluster.create(core.Role, { metadata: { name, namespace }, rules })
  await cluster.create(core.RoleBinding, {
    metadata: { name, namespace },
    roleRef: { apiGroup: 'rbac.authorization.k8s.io', kind: 'Role', name },
    subjects: [{ kind: 'ServiceAccount', name, namespace }],
  })
  return api.serviceAccountToken(namespace, name)
}

const old = randomBytes(8_000_000)
const edited = Buffer.concat([old.subarray(0, 5_000_000), randomBytes(100), old.subarray(5_000_000)])
await built('web-1', old)
await built('web-2', edited)
await built('web-3', randomBytes(3_000_000))
const ada = await person('ada', ['get'])
const grace = await person('grace', ['list'])

async function ask(token: string, path: string) {
  await using client = new ApiClient({ baseUrl: url, token: () => token })
  return await client
    .request('GET', `/v1/artifacts/${path}`, { schema: fetchAnswer })
    .catch((error: Error & { code?: string }) => ({ code: error.code, message: error.message }))
}

test('what a machine fetches is what its releases lack, in whole blocks', async () => {
  const sizeBytes = edited.length
  assert.equal(await ask(ada, 'demo/web-2/fetch'), { sizeBytes, fetchBytes: sizeBytes })
  assert.equal(await ask(ada, 'demo/web-2/fetch?onDisk=web-2'), { sizeBytes, fetchBytes: 0 })
  assert.equal(await ask(ada, 'demo/web-2/fetch?onDisk=web-3'), { sizeBytes, fetchBytes: sizeBytes })
  const answer = await ask(ada, 'demo/web-2/fetch?onDisk=web-3,web-1')
  assert.ok('fetchBytes' in answer)
  assert.ok(answer.fetchBytes >= blockBytes && answer.fetchBytes <= nearBytes, `${answer.fetchBytes}`)
  const gone = await ask(ada, 'demo/web-2/fetch?onDisk=web-0')
  assert.equal(gone, { sizeBytes, fetchBytes: sizeBytes }, 'one that is not there any more')
})

test('who may not see the artifact, and who asks for what is not there, is told', async () => {
  const codeOf = async (token: string, path: string) => {
    const answer = await ask(token, path)
    return 'code' in answer ? answer.code : 'none'
  }
  assert.is(await codeOf(grace, 'demo/web-2/fetch'), 'Forbidden')
  assert.is(await codeOf(ada, 'demo/web-9/fetch'), 'NotFound')
  assert.is(await codeOf(ada, 'demo/web-2/fetch?onDisk=a,b,c'), 'Invalid')
})

test('shoal deploy --dry-run says how much machines fetch', async () => {
  const spec = {
    ...{ artifactRef: { name: 'web-1' }, activation: { command: ['./server'] } },
    rollout: { waves: [{ regions: ['*'], percent: 100 }] },
  }
  await cluster.apply(GoalState, GoalState.make({ name: 'web', namespace }, spec), { fieldManager: 'test' })
  const counts = { desired: 20, fetched: 20, updated: 20, healthy: 20, failed: 0, unreachable: 0 }
  const effective = { artifact: 'web-1', template: 'a'.repeat(16), revision: 2, since: new Date().toISOString() }
  const lastGood = { artifact: 'web-3', template: 'b'.repeat(16), revision: 1 }
  const status = { ...counts, effective, lastGood, regions: [{ name: 'eu', ...counts }] }
  const object = { metadata: { name: 'web', namespace }, status }
  await cluster.apply(GoalState, object, { fieldManager: 'hub', subresource: 'status' })
  const KUBECONFIG = await api.kubeconfigFor(ada, namespace)
  const shoal = async (artifact: string, ...args: string[]) => {
    const command = [join(import.meta.dirname, '../../main.ts'), 'deploy', 'web', artifact, '--dry-run', ...args]
    const { stdout } = await promisify(execFile)(process.execPath, command, { env: { ...process.env, KUBECONFIG } })
    return stdout
  }
  assert.match(await shoal('web-2'), /web-2: 8\.0 MB to each of 20 machines at most, less what is on disk; --hub tells/)
  const plan = await shoal('web-2', '--hub', url)
  assert.match(plan, /web-2: 8\.0 MB, of which [\d.]+ k?M?B is not in web-1 and web-3: [\d.]+ MB to 20 machines/)
  const { spec: small } = artifacts.get(`${namespace}/web-2`) as Artifact
  const large = Artifact.make({ name: 'web-4', namespace }, { ...small, sizeBytes: 5e9 })
  await cluster.apply(Artifact, large, { fieldManager: 'test' })
  const seconds = async (artifact: string) =>
    /expected: (\d+)s, of which (\d+)s to fetch it at 1 Gbit/
      .exec(await shoal(artifact))
      ?.slice(1)
      .map(Number) ?? []
  const [shortest = 0, atOnce] = await seconds('web-2')
  assert.ok(shortest > 0)
  assert.equal([atOnce, await seconds('web-4')], [0, [shortest + 40, 40]])
})

test.run()
