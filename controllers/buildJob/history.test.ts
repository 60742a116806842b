import { execFile } from 'node:child_process'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { BuildJob, type BuildJobPhase } from '../../api/buildJob.ts'
import type { ShoalError } from '../../api/errors.ts'
import { type JobRecord, jobPage } from '../../api/jobApi.ts'
import { Pipeline } from '../../api/pipeline.ts'
import { Store } from '../../artifacts/store.ts'
import { startApiServer } from '../../hack/parts/apiServer.ts'
import { startDatabase } from '../../hack/parts/database.ts'
import { until } from '../../hack/parts/process.ts'
import { startStore } from '../../hack/parts/store.ts'
import { findJob } from '../../queue/control.ts'
import { keptObjects } from '../../queue/keptLog.ts'
import { ApiClient } from '../../runtime/apiClient.ts'
import { Cluster } from '../../runtime/cluster.ts'
import { TokenReviewer } from '../../runtime/identity.ts'
import { createLogger } from '../../runtime/log.ts'
import { Metrics } from '../../runtime/metrics.ts'
import { createServer, listen } from '../../runtime/server.ts'
import { Database } from '../../runtime/sql.ts'
import { HistoryPruner, type HistoryPrunerOptions } from './historyPruner.ts'
import { registerHistoryRoutes } from './historyRoutes.ts'
import { moveLog } from './logObject.ts'

const run = promisify(execFile)
const test = suite('history of builds')
const parts = new AsyncDisposableStack()
const [api, mariadb, bucket] = await Promise.all([startApiServer(), startDatabase(), startStore()])
for (const part of [api, mariadb, bucket]) parts.use(part)
await bucket.createBucket('home')
const cluster = parts.use(Cluster.load({ kubeconfig: api.kubeconfigFile }))
const database = parts.use(new Database(await mariadb.createSchema('builds')))
await database.migrate(join(import.meta.dirname, '../../queue/migrations'))
const store = parts.use(new Store({ ...bucket, bucket: 'home', timeoutMs: 2000 }))
const log = createLogger('test', 'silent')
test.after(() => parts.disposeAsync())

const namespace = `history-${process.pid}`
const web = Pipeline.parse({
  metadata: { name: 'web', namespace },
  spec: { source: { url: 'none' }, build: { command: ['true'], output: 'out' } },
})
const shown = BuildJob.parse(
  BuildJob.make({ name: 'web-3', namespace }, { pipelineRef: 'web', commit: '3'.repeat(40), ref: 'refs/heads/main' }),
)
const server = createServer({ log, metrics: new Metrics() })
registerHistoryRoutes(server, {
  ...{ cluster, database, tokens: new TokenReviewer(cluster, undefined) },
  buildJob: (key) => (key === `${namespace}/web-3` ? shown : undefined),
  pipeline: (key) => (key === `${namespace}/web` ? web : undefined),
})
const { url } = await listen(server, { host: '127.0.0.1', port: 0 })
parts.defer(() => server.close())

/** Somebody who may do this with BuildJobs in the namespace. */
async function tokenFor(name: string, verbs: string[]) {
  const token = await api.serviceAccountToken(namespace, name)
  const rbac = `/apis/rbac.authorization.k8s.io/v1/namespaces/${namespace}`
  const rules = [{ apiGroups: ['shoal.dev'], resources: ['buildjobs'], verbs }]
  await api.request('POST', `${rbac}/roles`, { metadata: { name }, rules })
  await api.request('POST', `${rbac}/rolebindings`, {
    metadata: { name },
    roleRef: { apiGroup: 'rbac.authorization.k8s.io', kind: 'Role', name },
    subjects: [{ kind: 'ServiceAccount', name, namespace }],
  })
  return token
}
const reader = await tokenFor('reader', ['get', 'list'])
const builder = await tokenFor('builder', ['create'])
const kubeconfig = await api.kubeconfigFor(reader, namespace)
const builderKubeconfig = await api.kubeconfigFor(builder, namespace)

function shoal(args: string[], as = kubeconfig) {
  return run(process.execPath, [join(import.meta.dirname, '../../main.ts'), ...args], {
    env: { PATH: process.env.PATH, KUBECONFIG: as, SHOAL_HUB_URL: url },
    maxBuffer: 64 << 20,
  }).catch((error: { code: number; stdout: string; stderr: string }) => error)
}
const ask = (method: 'GET' | 'POST', path: string, token = reader) =>
  new ApiClient({ baseUrl: url, token: () => token }).request(method, path).catch((error: ShoalError) => error.code)

let count = 0
const minute = 60_000
/** Rows of jobs that ended so long ago, the oldest first. */
async function insert(phases: BuildJobPhase[], endedAgoMs = 0) {
  const nowMs = await database.now()
  const queuedMs = nowMs - endedAgoMs - 10 * minute
  for (const phase of phases) {
    const n = ++count
    const { insertId } = await database.execute(
      `INSERT INTO job (namespace, pipeline, commit_id, n, name, ref, priority, created_at_ms, updated_at_ms)
       VALUES (?, 'web', ?, 1, ?, 'refs/heads/main', 0, ?, ?)`,
      [namespace, String(n).padStart(40, '0'), `web-${n}`, queuedMs, nowMs],
    )
    if (phase === 'Queued' || phase === 'Running') continue
    const said = phase === 'Failed' ? ['BuildFailed', 'exit code 2\nno such luck'] : [null, null]
    await database.execute(
      `INSERT INTO outcome (job_id, phase, token, started_at_ms, finished_at_ms, code, message, updated_at_ms) VALUES ?`,
      [[[insertId, phase, '1-x', queuedMs + 90_000, nowMs - endedAgoMs, ...said, nowMs]]],
    )
  }
}
const rows = async () =>
  (await database.query<{ name: string }>('SELECT name FROM job ORDER BY id')).map(({ name }) => name)

test.before.each(async () => {
  count = 0
  for (const table of ['job', 'outcome', 'job_log', 'kept_log', 'ready', 'slot'])
    await database.execute(`DELETE FROM ${table}`)
})

test('shoal jobs shows what was built, the last first, as a table', async () => {
  await insert(['Succeeded', 'Failed', 'Succeeded'], 3 * 3_600_000)
  const { stdout } = await shoal(['jobs'])
  const lines = stdout.split('\n')
  assert.match(lines[0] ?? '', /^NAME +PHASE +ATTEMPT +REF +COMMIT +QUEUED +WAITED +TOOK +MESSAGE$/)
  assert.match(lines[1] ?? '', /^web-3 +Succeeded +1 +main +0{12} +3h +90s +8m30s$/)
  assert.match(lines[2] ?? '', /^web-2 +Failed +1 +main +0{12} +3h +90s +8m30s +BuildFailed: exit code 2$/)
  assert.is(lines.length, 5)
  assert.equal((await shoal(['jobs', '--phase', 'Failed', '--limit', '1'])).stdout.split('\n').length, 3)
  const none = await shoal(['jobs', '--pipeline', 'api'])
  assert.equal([none.stdout, none.stderr], ['', 'there are no such builds\n'])
  assert.match((await shoal(['jobs', '--phase', 'Done'])).stderr, 'Allowed choices are Queued')
})

test('it reads page after page, as many as asked for', async () => {
  await insert(Array<BuildJobPhase>(1300).fill('Succeeded'))
  const names = async (...args: string[]) =>
    (JSON.parse((await shoal(['jobs', '-o', 'json', ...args])).stdout) as JobRecord[]).map(({ name }) => name)
  const all = Array.from({ length: 1300 }, (_, n) => `web-${1300 - n}`)
  assert.equal(await names('--all'), all)
  assert.equal(await names('--limit', '700'), all.slice(0, 700))
  assert.equal(await names(), all.slice(0, 50))
  assert.equal(await names('--pipeline', 'none'), [])
})

test('a page says which jobs still are in the API, and how to go on', async () => {
  await insert(['Failed', 'Queued', 'Succeeded', 'Replicating'])
  const page = jobPage.parse(await ask('GET', `/v1/jobs/${namespace}?limit=3`))
  assert.equal(
    page.items.map(({ name, inApi }) => [name, inApi]),
    [
      ['web-4', false],
      ['web-3', true],
      ['web-2', false],
    ],
  )
  const next = jobPage.parse(await ask('GET', `/v1/jobs/${namespace}?limit=3&continue=${page.continue}`))
  assert.equal([next.items.map(({ name }) => name), next.continue], [['web-1'], undefined])
  for (const wrong of ['limit=0', 'limit=501', 'phase=Done', 'continue=made-up'])
    assert.is(await ask('GET', `/v1/jobs/${namespace}?${wrong}`), 'Invalid', wrong)
})

test('only who may list BuildJobs sees them, and only who may create them rebuilds', async () => {
  await insert(['Failed'])
  assert.is(await ask('GET', `/v1/jobs/${namespace}`, builder), 'Forbidden')
  assert.is(await ask('GET', '/v1/jobs/kube-system'), 'Forbidden')
  assert.is(await ask('POST', `/v1/jobs/${namespace}/web-1/rebuild`), 'Forbidden')
  assert.is(await ask('POST', `/v1/jobs/${namespace}/web-9/rebuild`, builder), 'NotFound')
  await database.execute("UPDATE job SET pipeline = 'gone'")
  assert.is(await ask('POST', `/v1/jobs/${namespace}/web-1/rebuild`, builder), 'NotFound')
  assert.equal(await rows(), ['web-1'])
})

test('shoal rebuild queues the commit once more; while that is under way, not again', async () => {
  await insert(['Failed'])
  const name = `web-${'0'.repeat(12)}`
  const rebuild = async (job: string) => (await shoal(['rebuild', job], builderKubeconfig)).stdout
  assert.is(await rebuild('web-1'), `${name}-2 is queued\n`)
  assert.is(await rebuild('web-1'), `${name}-2 builds the same commit already\n`)
  const queued = await findJob(database, namespace, `${name}-2`)
  assert.equal([queued?.phase, queued?.commit, queued?.ref], ['Queued', '1'.padStart(40, '0'), 'refs/heads/main'])
  await database.execute("INSERT INTO outcome (job_id, phase, updated_at_ms) VALUES (?, 'Succeeded', 1)", [
    queued?.id ?? 0,
  ])
  assert.is(await rebuild(`${name}-2`), `${name}-3 is queued\n`)
})

/** The pruner, until what it is to do is done. */
async function prune(what: string, done: () => Promise<boolean>, more: Partial<HistoryPrunerOptions> = {}) {
  const stop = new AbortController()
  const metrics = new Metrics()
  const needed = { isNeeded: () => false, homeStore: async () => store, historyMs: 30 * minute }
  const pruner = new HistoryPruner({ database, log, metrics, everyMs: 20, paceMs: 1, ...needed, ...more })
  const running = pruner.run(stop.signal)
  try {
    await until(what, done)
  } finally {
    stop.abort()
    await running
  }
}
const are = (names: string[]) => async () => (await rows()).join() === names.join()

test('old jobs that are over and not needed are forgotten, whatever their number', async () => {
  await insert(['Failed', 'Queued', 'Queued', 'Replicating', 'Cancelled', 'Succeeded'], 60 * minute)
  await insert(Array<BuildJobPhase>(900).fill('Succeeded'), 60 * minute)
  await insert(['Failed', 'Succeeded'], 5 * minute)
  const left = ['web-2', 'web-3', 'web-4', 'web-6', 'web-907', 'web-908']
  await prune('the old ones are gone', are(left), { isNeeded: ({ name }) => name === 'web-6' })
})

test('with a job its log goes from the bucket; while that is away both stay', async () => {
  await insert(['Failed', 'Failed'], 60 * minute)
  const jobs = await Promise.all(['web-1', 'web-2'].map((name) => findJob(database, namespace, name)))
  const ids = jobs.map((job) => job?.id ?? 0)
  await database.execute('INSERT INTO job_log VALUES ?', [ids.map((id) => [id, 1, 0, 'text'])])
  for (const job of jobs)
    if (job) assert.ok(await moveLog({ database, store, signal: new AbortController().signal }, job))
  const keys = await keptObjects(database, ids)
  const isThere = (key: string) =>
    store.head(key).then(
      () => true,
      (error: ShoalError) => error.code !== 'ReplicaMissing',
    )
  assert.equal(await Promise.all(keys.map(isThere)), [true, true])
  await bucket.kill()
  let rounds = 0
  const isNeeded = ({ name }: { name: string }) => name === 'web-1' && ++rounds > 0
  await prune('it has tried twice', async () => rounds > 2, { isNeeded })
  assert.equal(await rows(), ['web-1', 'web-2'])
  await bucket.start()
  await prune('one is gone', are(['web-1']), { isNeeded })
  assert.equal((await Promise.all(keys.map(isThere))).sort(), [false, true])
  assert.is((await keptObjects(database, ids)).length, 1)
})

test.run()
