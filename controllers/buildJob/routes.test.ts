import { randomBytes } from 'node:crypto'
import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import type { ShoalError } from '../../api/errors.ts'
import { Pipeline } from '../../api/pipeline.ts'
import { Region } from '../../api/region.ts'
import {
  claimAnswer,
  heartbeatAnswer,
  type JobClaim,
  uploadPartsAnswer,
  uploadStartAnswer,
} from '../../api/workerApi.ts'
import { hashOutput } from '../../artifacts/hashOutput.ts'
import { type UploadCalls, uploadOutput } from '../../artifacts/upload.ts'
import { startApiServer } from '../../hack/parts/apiServer.ts'
import { startDatabase } from '../../hack/parts/database.ts'
import { temporaryDir, until } from '../../hack/parts/process.ts'
import { startStore } from '../../hack/parts/store.ts'
import { Broker } from '../../queue/broker.ts'
import { cancel, findJob } from '../../queue/control.ts'
import { enqueue } from '../../queue/enqueue.ts'
import { requeueLost } from '../../queue/lease.ts'
import { logParts } from '../../queue/log.ts'
import { ApiClient } from '../../runtime/apiClient.ts'
import { systemClock } from '../../runtime/clock.ts'
import { ApiError, Cluster } from '../../runtime/cluster.ts'
import { TokenReviewer } from '../../runtime/identity.ts'
import { createLogger } from '../../runtime/log.ts'
import { Metrics } from '../../runtime/metrics.ts'
import { createServer, listen } from '../../runtime/server.ts'
import { Database } from '../../runtime/sql.ts'
import { RegionDirectory } from '../region/directory.ts'
import { registerWorkerRoutes } from './routes.ts'
import { targetOf } from './target.ts'

const test = suite('worker routes')
const parts = new AsyncDisposableStack()
const [api, mariadb, bucket, dir] = await Promise.all([
  startApiServer(),
  startDatabase(),
  startStore(),
  temporaryDir('shoal-routes'),
])
for (const part of [api, mariadb, bucket, dir]) parts.use(part)
await bucket.createBucket('blobs')
const cluster = parts.use(Cluster.load({ kubeconfig: api.kubeconfigFile }))
const database = parts.use(new Database(await mariadb.createSchema('builds')))
await database.migrate(join(import.meta.dirname, '../../queue/migrations'))

const system = `routes-${process.pid}`
const regionOf = (name: string, spec: object) =>
  Region.parse({ metadata: { name }, spec: { store: { endpoint: bucket.endpoint, bucket: 'blobs' }, ...spec } })
const store = {
  endpoint: bucket.endpoint,
  bucket: 'blobs',
  credentialsSecretRef: { namespace: system, name: 'store' },
}
const regions = [regionOf('home', { home: true, store }), regionOf('far', {}), regionOf('shut', { cordoned: true })]
const pipelineOf = (name: string, more: object = {}) =>
  Pipeline.parse({
    metadata: { name, namespace: 'demo' },
    spec: {
      source: { url: 'https://git.example.com/web.git', credentialsSecretRef: { name: 'git' } },
      build: { command: ['make'], output: 'dist' },
      ...more,
    },
  })
const pipelines = new Map([
  ['demo/web', pipelineOf('web')],
  ['demo/astray', pipelineOf('astray', { regions: ['nowhere'] })],
  ['demo/shut', pipelineOf('shut', { regions: ['shut'] })],
])
let secretsAway = false
const readSecret = async (_namespace: string, name: string) => {
  if (secretsAway) throw new ApiError(503, 'ServiceUnavailable', 'the API server is away')
  if (name === 'git') return { username: 'u', password: 'p' }
  return { accessKeyId: bucket.accessKeyId, secretAccessKey: bucket.secretAccessKey }
}
const directory = parts.use(new RegionDirectory({ list: () => regions, readSecret }))
const log = createLogger('test', 'silent')
const pipeline = (key: string) => pipelines.get(key)
const broker = new Broker({
  ...{ database, clock: systemClock, log, lookMs: 10, gatherMs: 30 },
  targetOf: targetOf({ pipeline, regions: directory }),
})
const stop = new AbortController()
const brokering = broker.run(stop.signal)
parts.defer(async () => {
  stop.abort()
  await brokering
})
const heardOf: number[] = []
const server = createServer({ log, metrics: new Metrics() })
registerWorkerRoutes(server, {
  database,
  tokens: new TokenReviewer(cluster, 'shoal-hub'),
  namespace: system,
  pipeline,
  regions: directory,
  readSecret,
  leaseMs: 30_000,
  broker,
  claimHoldMs: 300,
  onJob: (id) => heardOf.push(id),
})
const { url } = await listen(server, { host: '127.0.0.1', port: 0 })
parts.defer(() => server.close())

const workerToken = await api.serviceAccountToken(system, 'shoal-worker', ['shoal-hub'])
const clientWith = (token: string | undefined) =>
  parts.use(new ApiClient({ baseUrl: url, ...(token !== undefined && { token: () => token }) }))
const hub = clientWith(workerToken)
const post = (path: string, body: unknown, client = hub) => client.request('POST', `/v1/worker/${path}`, { body })
const codeOf = (work: Promise<unknown>) =>
  work.then(
    () => 'accepted',
    (error: ShoalError) => error.code,
  )

let polls = 0
const claimer = (pollId = ++polls) => ({
  worker: 'w1',
  pollId,
  probeUrl: 'http://127.0.0.1:1/',
  probeSecret: 's'.repeat(32),
})
const claim = async (pollId?: number) => claimAnswer.parse(await post('claim', claimer(pollId)))
let commits = 0
const queue = async (pipeline = 'web') => {
  const commit = (++commits).toString(16).padStart(12, '0').padEnd(40, '0')
  const ref = 'refs/heads/main'
  return (await enqueue(database, { namespace: 'demo', pipeline, commit, ref, maxJobs: 9 })).job.name
}
/** A job that was just queued, claimed. */
async function claimed() {
  const name = await queue()
  const { job } = await claim()
  assert.is(job?.name, name)
  return { name, job, held: { jobId: job?.jobId ?? 0, token: job?.token ?? '' } }
}
const logOf = async (jobId: number) =>
  (await logParts(database, { jobId, attempt: 1, offset: 0 })).map(({ text }) => text.toString()).join('')
/** Every route that names a job, with a body that is valid. */
const digest = `sha256:${'b'.repeat(64)}`
const sha256 = Buffer.alloc(32).toString('base64')
const calls = (held: JobClaim): [string, object][] => [
  ['heartbeat', held],
  ['log', { ...held, offset: 0, text: 'x' }],
  ['upload/start', { ...held, sizeBytes: 1 }],
  ['upload/parts', { ...held, uploadId: 'u', parts: [{ number: 1, sizeBytes: 1, sha256 }] }],
  [
    'upload/complete',
    { ...held, uploadId: 'u', parts: [{ number: 1, etag: 'e', sha256 }], digest, sizeBytes: 1, descriptor: 'AAAA' },
  ],
  ['finish', { ...held, outcome: { result: 'Built' } }],
  ['finish', { ...held, outcome: { result: 'Failed', code: 'BuildFailed', message: 'x' } }],
  ['finish', { ...held, outcome: { result: 'HandedBack' } }],
]

test.before.each(async () => {
  secretsAway = false
  for (const table of ['ready', 'blocked', 'slot', 'job']) await database.execute(`DELETE FROM ${table}`)
})

test('only the workers’ ServiceAccount, by a token for the hub, is let in anywhere', async () => {
  const callers: [string, string | undefined][] = [
    ['Unauthorized', undefined],
    ['Unauthorized', 'not-a-token'],
    ['Unauthorized', await api.serviceAccountToken(system, 'shoal-worker')],
    ['Forbidden', await api.serviceAccountToken(system, 'another', ['shoal-hub'])],
    ['Forbidden', await api.serviceAccountToken(`${system}-tenant`, 'shoal-worker', ['shoal-hub'])],
  ]
  const { held } = await claimed()
  for (const [code, token] of callers) {
    const client = clientWith(token)
    const all: [string, object][] = [['claim', claimer()], ...calls(held)]
    for (const [path, body] of all) assert.is(await codeOf(post(path, body, client)), code, path)
  }
  await post('heartbeat', held)
})

test('a build is claimed, shown alive, logged, uploaded and finished', async () => {
  const { name, job, held } = await claimed()
  assert.equal(job?.source, { url: 'https://git.example.com/web.git', username: 'u', password: 'p' })
  assert.equal([job?.attempt, job?.leaseMs, job?.heartbeatMs], [1, 30_000, 10_000])
  const running = await findJob(database, 'demo', name)
  assert.equal(JSON.parse(running?.target ?? '').regions, ['far', 'home'])
  assert.equal(heartbeatAnswer.parse(await post('heartbeat', held)), { leaseMs: 30_000, cancel: false })
  assert.is(heardOf.pop(), held.jobId, 'of the claim')
  await post('log', { ...held, offset: 0, text: 'hello ' })
  assert.is(heardOf.pop(), held.jobId, 'of its log')
  await post('log', { ...held, offset: 6, text: 'world' })
  assert.is(await logOf(held.jobId), 'hello world')

  assert.is(await codeOf(post('finish', { ...held, outcome: { result: 'Built' } })), 'Fenced', 'nothing was uploaded')
  assert.is((await findJob(database, 'demo', name))?.phase, 'Running')

  const file = join(dir.path, 'output')
  await writeFile(file, randomBytes(100_000))
  const output = await hashOutput(file, { name: 'web' })
  const calls: UploadCalls = {
    start: async (sizeBytes) => uploadStartAnswer.parse(await post('upload/start', { ...held, sizeBytes })),
    parts: async (uploadId, list) =>
      uploadPartsAnswer.parse(await post('upload/parts', { ...held, uploadId, parts: list })).parts,
    async complete(uploadId, found) {
      await post('upload/complete', { ...held, uploadId, ...found })
    },
  }
  await uploadOutput(output, calls, { signal: AbortSignal.timeout(20_000) })
  const finish = { ...held, outcome: { result: 'Built' } }
  await post('finish', finish)
  await post('finish', finish)
  const done = await findJob(database, 'demo', name)
  assert.equal([done?.phase, JSON.parse(done?.facts ?? '').digest], ['Replicating', output.digest])
  assert.is(await codeOf(post('heartbeat', held)), 'Fenced', 'it is finished')
})

test('a token that is not the latest is refused on every route and changes nothing', async () => {
  const { name, held } = await claimed()
  await requeueLost(database, held)
  const { job } = await claim()
  assert.is(job?.name, name)
  for (const old of [held, { ...held, token: 'made-up' }, { jobId: 4_000_000, token: held.token }]) {
    for (const [path, body] of calls(old)) assert.is(await codeOf(post(path, body)), 'Fenced', path)
  }
  const kept = await findJob(database, 'demo', name)
  assert.equal([kept?.phase, kept?.facts], ['Running', null])
  assert.is(await logOf(held.jobId), '')
  await post('heartbeat', { jobId: job?.jobId, token: job?.token })
})

test('a poll repeated under its id brings the same job; without one, when to ask again', async () => {
  const { job } = await claimed()
  assert.equal((await claim(polls)).job, job)
  assert.equal(await claim(), { pollAfterMs: 0 })
})

test('a worker that asks while nothing is queued is held; one that hangs up is forgotten', async () => {
  const patience = new AbortController()
  const asked = hub.request('POST', '/v1/worker/claim', { body: claimer(), signal: patience.signal })
  await until('it waits', () => broker.waiting === 1)
  patience.abort()
  await asked.catch(() => undefined)
  await until('it is forgotten', () => broker.waiting === 0)
})

test('a cancelled job is told at the next heartbeat', async () => {
  const { name, held } = await claimed()
  await cancel(database, held.jobId)
  assert.equal(heartbeatAnswer.parse(await post('heartbeat', held)), { leaseMs: 30_000, cancel: true })
  await post('finish', { ...held, outcome: { result: 'Failed', code: 'Cancelled', message: 'cancelled' } })
  assert.is((await findJob(database, 'demo', name))?.phase, 'Cancelled')
})

test('a job its pipeline makes impossible fails at the claim, and the worker goes on', async () => {
  for (const [pipeline, code] of [
    ['gone', 'NotFound'],
    ['astray', 'RegionUnknown'],
    ['shut', 'RegionUnknown'],
  ] as const) {
    const name = await queue(pipeline)
    assert.equal(await claim(), { pollAfterMs: 0 })
    const job = await findJob(database, 'demo', name)
    assert.equal([job?.phase, job?.code], ['Failed', code])
  }
})

test('a job whose secrets can’t be read for a moment goes back to its place, and is not charged', async () => {
  const name = await queue()
  secretsAway = true
  const pollId = ++polls
  assert.not.equal(await codeOf(claim(pollId)), 'accepted')
  assert.is((await findJob(database, 'demo', name))?.phase, 'Queued')
  secretsAway = false
  const { job } = await claim(pollId)
  assert.equal([job?.name, job?.attempt], [name, 1])
})

test('a body that doesn’t fit is invalid, and says where', async () => {
  const { held } = await claimed()
  assert.is(await codeOf(post('claim', { ...claimer(), probeSecret: 'short' })), 'Invalid')
  assert.is(await codeOf(post('heartbeat', { jobId: held.jobId })), 'Invalid')
  assert.is(await codeOf(post('log', { ...held, offset: -1, text: '' })), 'Invalid')
  const outcome = { result: 'Failed', code: 'NoSuchCode', message: '' }
  assert.is(await codeOf(post('finish', { ...held, outcome })), 'Invalid')
})

test('a worker that leaves is forgotten; with another’s secret nobody is', async () => {
  await claimed()
  const names = async () => (await database.query<{ name: string }>('SELECT name FROM worker')).map(({ name }) => name)
  const { worker, probeSecret } = { ...claimer(), worker: 'leaving' }
  await post('claim', { ...claimer(), worker })
  assert.ok((await names()).includes(worker))
  await post('leave', { worker, probeSecret: 'x'.repeat(32) })
  assert.ok((await names()).includes(worker))
  await post('leave', { worker, probeSecret })
  assert.not((await names()).includes(worker))
  // It holds a job.
  await post('leave', { worker: 'w1', probeSecret })
  assert.ok((await names()).includes('w1'))
})

test.after(() => parts.disposeAsync())
test.run()
