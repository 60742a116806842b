import { hash, randomBytes } from 'node:crypto'
import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { Artifact } from '../../api/artifact.ts'
import { Region } from '../../api/region.ts'
import { hashOutput } from '../../artifacts/hashOutput.ts'
import { descriptorKey } from '../../artifacts/key.ts'
import { type BlobFacts, receiveUpload } from '../../artifacts/receive.ts'
import { Replicas } from '../../artifacts/replicas.ts'
import { regionHub, runReplicator } from '../../artifacts/replicator.ts'
import { Store } from '../../artifacts/store.ts'
import { uploadOutput } from '../../artifacts/upload.ts'
import { startApiServer } from '../../hack/parts/apiServer.ts'
import { applyCrds } from '../../hack/parts/crds.ts'
import { startDatabase } from '../../hack/parts/database.ts'
import { temporaryDir, until } from '../../hack/parts/process.ts'
import { startStore } from '../../hack/parts/store.ts'
import { ApiClient } from '../../runtime/apiClient.ts'
import { Cluster } from '../../runtime/cluster.ts'
import { core } from '../../runtime/core.ts'
import { generateSigningKey, loadSigningKey, verify } from '../../runtime/dsse.ts'
import { TokenReviewer } from '../../runtime/identity.ts'
import { createLogger } from '../../runtime/log.ts'
import { Metrics } from '../../runtime/metrics.ts'
import { Reflector } from '../../runtime/reflector.ts'
import { createServer, listen } from '../../runtime/server.ts'
import { Database } from '../../runtime/sql.ts'
import { RegionController } from '../region/controller.ts'
import { RegionDirectory } from '../region/directory.ts'
import { registerRegionRoutes } from '../region/routes.ts'
import { ArtifactController } from './controller.ts'
import type { ReplicatingJob } from './jobs.ts'

const parts = new AsyncDisposableStack()
const log = createLogger('test', process.env.SHOAL_TEST_LOG ?? 'silent')
const metrics = new Metrics()
const [api, database, homeServer, farServer, dir] = await Promise.all([
  startApiServer({ own: true }),
  startDatabase(),
  startStore(),
  startStore(),
  temporaryDir('shoal-artifact'),
])
for (const part of [api, database, homeServer, farServer, dir]) parts.use(part)
await applyCrds(api)
await Promise.all([homeServer.createBucket('blobs'), farServer.createBucket('blobs')])
const namespace = `artifacts-${hash('sha256', dir.path).slice(0, 8)}`
await api.createNamespace(namespace)
const cluster = parts.use(Cluster.load({ kubeconfig: api.kubeconfigFile }))
const sql = parts.use(new Database(await database.createSchema('replication')))
await sql.migrate(join(import.meta.dirname, '../../artifacts/migrations'))

await cluster.create(core.Secret, {
  metadata: { name: 'home-store', namespace },
  stringData: { accessKeyId: homeServer.accessKeyId, secretAccessKey: homeServer.secretAccessKey },
})
const regionSpec = (server: { endpoint: string }) => ({ store: { endpoint: server.endpoint, bucket: 'blobs' } })
const homeSpec = {
  home: true,
  store: { ...regionSpec(homeServer).store, credentialsSecretRef: { namespace, name: 'home-store' } },
}
await cluster.create(Region, { ...Region.make({ name: 'home' }, homeSpec) })
await cluster.create(Region, { ...Region.make({ name: 'far' }, regionSpec(farServer)) })

const home = parts.use(new Store({ ...homeServer, bucket: 'blobs' }))
const far = parts.use(new Store({ ...farServer, bucket: 'blobs' }))

/** The queue, as far as the controller sees it. */
const queue = new Map<number, ReplicatingJob & { succeeded: boolean; replicated?: string }>()
const jobs = {
  list: async () => [...queue.values()].filter((job) => !job.succeeded),
  markSucceeded: async (id: number) => {
    const job = queue.get(id)
    if (job) job.succeeded = true
  },
  setReplicated: async (id: number, replicated: string) => {
    const job = queue.get(id)
    if (job) job.replicated = replicated
  },
}

const signingKey = loadSigningKey(generateSigningKey().privateKeyPem)
const timings = { leaseMs: 2000, checkEveryMs: 300, retryMs: 100, retryMaxMs: 300 }

/** One replica of the hub; the test runs two. */
async function runHub(signal: AbortSignal) {
  const artifacts = new Reflector<Artifact>({ cluster, resource: Artifact, parse: Artifact.parse, log })
  const regions = new Reflector<Region>({ cluster, resource: Region, parse: Region.parse, log })
  const running = [artifacts.run(signal), regions.run(signal)]
  await Promise.all([artifacts.synced(), regions.synced()])
  const replicas = new Replicas(sql, timings)
  const directory = new RegionDirectory({
    list: () => regions.list(),
    readSecret: async (secretNamespace, name) => {
      const secret = await cluster.get<{ data: Record<string, string> }>(core.Secret, secretNamespace, name)
      return secret && Object.fromEntries(Object.entries(secret.data).map(([key, value]) => [key, atob(value)]))
    },
  })
  const controller = new ArtifactController({
    cluster,
    artifacts,
    regions: directory,
    replicas,
    jobs,
    signingKey,
    log,
    metrics,
    pollMs: 100,
  })
  const regionController = new RegionController({ cluster, regions, directory, replicas, log, metrics, resyncMs: 500 })
  const server = createServer({ log, metrics })
  registerRegionRoutes(server, {
    regions: directory,
    replicas,
    tokens: new TokenReviewer(cluster, 'shoal-hub'),
    onChange: (changed) => controller.notify(changed),
    pollAfterMs: 50,
  })
  const { url } = await listen(server, { host: '127.0.0.1', port: 0 })
  running.push(controller.run(signal), regionController.run(signal))
  const stopped = async () => {
    await server.close()
    await Promise.all(running)
    directory[Symbol.dispose]()
  }
  return { url, controller, stopped }
}

const stop = new AbortController()
const hubs = [await runHub(stop.signal), await runHub(stop.signal)] as const
parts.defer(async () => {
  stop.abort()
  await Promise.all(hubs.map((hub) => hub.stopped()))
})

async function clientOf(region: string): Promise<ApiClient> {
  const token = await api.serviceAccountToken(`shoal-region-${region}`, 'region', ['shoal-hub'])
  return new ApiClient({ baseUrl: hubs[0].url, token: () => token })
}

async function replicator(region: string): Promise<AsyncDisposable> {
  const client = await clientOf(region)
  const abort = new AbortController()
  const credentials = region === 'home' ? homeServer : farServer
  const done = runReplicator({ hub: regionHub(client), credentials, log, signal: abort.signal, progressMs: 100 })
  return {
    async [Symbol.asyncDispose]() {
      abort.abort()
      await done
      await client[Symbol.asyncDispose]()
    },
  }
}

/** A job whose build was uploaded. */
async function built(name: string, replicate: 'Always' | 'OnDeploy' = 'Always', regions = ['far', 'home']) {
  const file = join(dir.path, name)
  await writeFile(file, randomBytes(20_000_000))
  const output = await hashOutput(file, { name: 'web' })
  const key = `${namespace}/${name}/1-${hash('sha256', output.digest).slice(0, 8)}`
  let facts: BlobFacts | undefined
  await uploadOutput(
    output,
    {
      start: async () => ({ uploadId: await home.uploads.start(key), partSizeBytes: output.partSizeBytes }),
      parts: (uploadId, wanted) =>
        Promise.all(
          wanted.map(async (part) => ({
            number: part.number,
            ...(await home.uploads.presignPart({ key, uploadId, ...part })),
          })),
        ),
      complete: async (uploadId, { descriptor, ...rest }) => {
        facts = await receiveUpload(home, { key, uploadId, ...rest, descriptor: Buffer.from(descriptor, 'base64') })
      },
    },
    { signal: stop.signal },
  )
  if (!facts) throw new Error('not received')
  const id = queue.size + 1
  const build = {
    source: { url: 'https://git.example.com/web.git', ref: 'refs/heads/main' },
    command: ['./build.sh'],
    worker: 'worker-1',
    startedAt: '2026-01-01T00:00:00Z',
    finishedAt: '2026-01-01T00:01:00Z',
  }
  const job = { id, namespace, name, pipeline: 'web', commit: 'a'.repeat(40), regions, replicate, facts, build }
  queue.set(id, { ...job, succeeded: false })
  return { id, facts }
}

const artifactOf = async (name: string) => Artifact.parse(await cluster.get(Artifact, namespace, name))

/** The artifact once its Deployable condition has this reason. */
const withReason = (name: string, reason: string) =>
  until(`${name} to be ${reason}`, async () => {
    const artifact = await artifactOf(name)
    const condition = artifact.status?.conditions?.find(({ type }) => type === 'Deployable')
    if (condition?.reason !== reason) throw new Error(JSON.stringify(artifact.status))
    return { ...artifact, condition }
  })

const setRegion = (name: string, spec: object) => cluster.patch(Region, { name }, { spec })

const test = suite('an artifact')
test.after(() => parts.disposeAsync())

test('it is deployable, and its job succeeded, only when every region has it', async () => {
  const { id, facts } = await built('a')
  await using _home = await replicator('home')
  const waiting = await withReason('a', 'WaitingForReplicas')
  assert.is(waiting.status?.replicated, '1/2')
  assert.is(waiting.condition.status, 'False')
  assert.match(waiting.condition.message, 'far: Pending')
  assert.is(waiting.spec.digest, facts.digest)
  await until('the job shows it', () => queue.get(id)?.replicated === '1/2')
  assert.is(queue.get(id)?.succeeded, false)
  await using _far = await replicator('far')
  const deployable = await withReason('a', 'AllReplicated')
  assert.is(deployable.condition.status, 'True')
  assert.is(deployable.status?.replicated, '2/2')
  assert.equal(
    deployable.status?.conditions?.map(({ type, status }) => `${type}=${status}`),
    ['Deployable=True', 'Ready=True'],
  )
  await until('the job to succeed', () => queue.get(id)?.succeeded)
  assert.is(deployable.metadata.ownerReferences, undefined, 'it outlives its BuildJob')
  assert.is((await far.readBack(facts.key)).digest, facts.digest)
  const statement = verify(deployable.spec.provenance ?? '', 'application/vnd.in-toto+json', [signingKey])
  const { subject, predicate } = JSON.parse(Buffer.from(statement).toString())
  assert.is(`sha256:${subject[0].digest.sha256}`, facts.digest)
  assert.is(predicate.buildDefinition.resolvedDependencies[0].digest.gitCommit, 'a'.repeat(40))
})

test('a store that is away, or lost the copy, makes it not deployable by name, until it is repaired', async () => {
  const { facts } = await built('b')
  await using _home = await replicator('home')
  await using _far = await replicator('far')
  await withReason('b', 'AllReplicated')
  await farServer.kill()
  const away = await withReason('b', 'StoreUnreachable')
  assert.match(away.condition.message, /^far: Unknown/)
  assert.is(away.status?.replicated, '1/2')
  await farServer.start()
  await withReason('b', 'AllReplicated')
  await far.delete(facts.key)
  await until('it is copied again', async () => (await far.head(facts.key)).sizeBytes === facts.sizeBytes)
  await withReason('b', 'AllReplicated')
})

test('a bucket that replicates by itself and got a wrong byte makes it not deployable by name', async () => {
  await setRegion('far', { replication: 'Bucket' })
  await using _home = await replicator('home')
  await using _far = await replicator('far')
  const { id, facts } = await built('c')
  await withReason('c', 'ReplicaMissing')
  const blob = Buffer.from(await home.readAll(facts.key, 1 << 30))
  blob[777] = (blob[777] ?? 0) ^ 4
  await far.put(facts.key, blob)
  await far.put(descriptorKey(facts.key), await home.readAll(descriptorKey(facts.key), 1 << 20))
  const corrupt = await withReason('c', 'ReplicaCorrupt')
  assert.match(corrupt.condition.message, /^far: Corrupt/)
  assert.is(queue.get(id)?.succeeded, false)
  blob[777] = (blob[777] ?? 0) ^ 4
  await far.put(facts.key, blob)
  await withReason('c', 'AllReplicated')
  await setRegion('far', { replication: 'Managed' })
})

test('with OnDeploy the job ends with the home copy, and replication starts when it is asked for', async () => {
  await using _home = await replicator('home')
  await using _far = await replicator('far')
  const { id } = await built('d', 'OnDeploy')
  await until('the job to succeed', () => queue.get(id)?.succeeded)
  assert.match((await withReason('d', 'WaitingForReplicas')).condition.message, 'when a goal names it')
  await hubs[0].controller.requestReplication(namespace, 'd')
  await hubs[1].controller.requestReplication(namespace, 'd')
  await withReason('d', 'AllReplicated')
})

test('a cordoned region is left out, and gets it on its return; a region that does not exist stalls it', async () => {
  await setRegion('far', { cordoned: true })
  await using _home = await replicator('home')
  await using _far = await replicator('far')
  const { id } = await built('e')
  const without = await withReason('e', 'AllReplicated')
  assert.is(without.status?.replicated, '1/1')
  await until('the job to succeed', () => queue.get(id)?.succeeded)
  await setRegion('far', { cordoned: false })
  await until('far has it too', async () => (await artifactOf('e')).status?.replicated === '2/2')
  await built('f', 'Always', ['home', 'nowhere'])
  const stalled = await withReason('f', 'WaitingForReplicas')
  assert.ok(stalled.status?.conditions?.some(({ type, reason }) => type === 'Stalled' && reason === 'RegionUnknown'))
})

test('deleting the Artifact forgets its copies, and nothing brings it back', async () => {
  await cluster.delete(Artifact, namespace, 'a')
  const replicas = new Replicas(sql, timings)
  await until('its rows are gone', async () => (await replicas.of({ namespace, name: 'a' })).length === 0)
  assert.is(await cluster.get(Artifact, namespace, 'a'), undefined)
})

test('a region is Ready once its replicator asks, and speaks and sees only for itself', async () => {
  await using _home = await replicator('home')
  const region = await until('home is Ready', async () => {
    const found = Region.parse(await cluster.get(Region, undefined, 'home'))
    const ready = found.status?.conditions?.some(({ type, status }) => type === 'Ready' && status === 'True')
    return ready ? found : undefined
  })
  assert.is(region.status?.machines, 0)
  const code = (promise: Promise<unknown>) =>
    promise.then(
      () => 'none',
      (error: { code?: string }) => error.code,
    )
  const stranger = await api.serviceAccountToken(namespace, 'region', ['shoal-hub'])
  const otherAudience = await api.serviceAccountToken('shoal-region-far', 'region')
  for (const [token, expected] of [
    [stranger, 'Forbidden'],
    [otherAudience, 'Unauthorized'],
    ['nonsense', 'Unauthorized'],
  ] as const) {
    await using client = new ApiClient({ baseUrl: hubs[0].url, token: () => token })
    assert.is(await code(client.request('GET', '/v1/region/work')), expected)
  }
  const kubeconfig = await api.kubeconfigFor(otherAudience)
  await using seen = Cluster.load({ kubeconfig })
  assert.equal(
    (await seen.list(core.ConfigMap, { namespace: 'shoal-region-far' })).items.map(() => 1),
    [],
  )
  assert.is(await code(seen.list(core.ConfigMap, { namespace: 'shoal-region-home' })), 'Forbidden')
  assert.is(await code(seen.list(core.Secret, { namespace: 'shoal-region-far' })), 'Forbidden')
})

test('two home regions stall every region until one of them is no more', async () => {
  const { store } = homeSpec
  await cluster.create(Region, { ...Region.make({ name: 'second' }, { home: true, store }) })
  const stalled = (name: string) =>
    until(`${name} is Stalled`, async () => {
      const { status } = Region.parse(await cluster.get(Region, undefined, name))
      return status?.conditions?.find(({ type }) => type === 'Stalled')
    })
  assert.match((await stalled('home')).message, 'home, second are all home')
  await stalled('far')
  await cluster.delete(Region, undefined, 'second')
  await until('home is not Stalled', async () => {
    const { status } = Region.parse(await cluster.get(Region, undefined, 'home'))
    return !status?.conditions?.some(({ type }) => type === 'Stalled')
  })
})

test.run()
