import { execFileSync } from 'node:child_process'
import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { BuildJob } from '../../api/buildJob.ts'
import { Pipeline } from '../../api/pipeline.ts'
import { startApiServer } from '../../hack/parts/apiServer.ts'
import { applyCrds } from '../../hack/parts/crds.ts'
import { startDatabase } from '../../hack/parts/database.ts'
import { temporaryDir, until } from '../../hack/parts/process.ts'
import { claim } from '../../queue/claim.ts'
import { findJob, markSucceeded, setReplicated } from '../../queue/control.ts'
import { enqueue } from '../../queue/enqueue.ts'
import { finish } from '../../queue/finish.ts'
import { recordUpload } from '../../queue/lease.ts'
import { Cluster } from '../../runtime/cluster.ts'
import { core } from '../../runtime/core.ts'
import { EventRecorder } from '../../runtime/events.ts'
import { createLogger } from '../../runtime/log.ts'
import { Metrics } from '../../runtime/metrics.ts'
import { Reflector } from '../../runtime/reflector.ts'
import { Database } from '../../runtime/sql.ts'
import { pipelineController } from '../pipeline/controller.ts'
import { BuildJobController } from './controller.ts'

const test = suite('build jobs and pipelines')
const parts = new AsyncDisposableStack()
const [api, mariadb, dir] = await Promise.all([
  startApiServer({ own: true }),
  startDatabase(),
  temporaryDir('shoal-buildjob'),
])
for (const part of [api, mariadb, dir]) parts.use(part)
await applyCrds(api)
const namespace = 'demo'
await api.createNamespace(namespace)
const cluster = parts.use(Cluster.load({ kubeconfig: api.kubeconfigFile }))
const database = parts.use(new Database(await mariadb.createSchema('builds')))
await database.migrate(join(import.meta.dirname, '../../queue/migrations'))
const log = createLogger('test', process.env.SHOAL_TEST_LOG ?? 'silent')
const metrics = new Metrics()

/** One leader, until it is stopped. */
async function lead() {
  const stop = new AbortController()
  const { signal } = stop
  const buildJobs = new Reflector<BuildJob>({ cluster, resource: BuildJob, parse: BuildJob.parse, log })
  const pipelines = new Reflector<Pipeline>({ cluster, resource: Pipeline, parse: Pipeline.parse, log })
  const events = new EventRecorder({ cluster, component: 'test', log })
  const common = { cluster, database, events, log, metrics }
  const jobs = new BuildJobController({ ...common, buildJobs, pipeline: (key) => pipelines.get(key), pollMs: 50 })
  const polls = pipelineController({
    ...common,
    pipelines,
    onChange: () => jobs.notify(),
    async readSecret(secretNamespace, name) {
      const secret = await cluster.get<{ data?: Record<string, string> }>(core.Secret, secretNamespace, name)
      return secret && Object.fromEntries(Object.entries(secret.data ?? {}).map(([key, text]) => [key, atob(text)]))
    },
  })
  const running = [buildJobs.run(signal), pipelines.run(signal)]
  await Promise.all([buildJobs.synced(), pipelines.synced()])
  running.push(jobs.run(signal), polls.run(signal))
  return async () => {
    stop.abort()
    await Promise.all(running)
  }
}
let resign = await lead()
parts.defer(() => resign())

const git = (repository: string, ...args: string[]) =>
  execFileSync('git', ['-c', 'user.name=t', '-c', 'user.email=t@example.com', '-C', repository, ...args], {
    encoding: 'utf8',
    stdio: ['ignore', 'pipe', 'ignore'],
  }).trim()
const commitTo = (repository: string) => {
  git(repository, 'commit', '-q', '--allow-empty', '-m', 'x')
  return git(repository, 'rev-parse', 'HEAD')
}
function newRepository(name: string) {
  const repository = join(dir.path, name)
  execFileSync('git', ['init', '-q', '-b', 'main', repository])
  return { repository, first: commitTo(repository) }
}
const createPipeline = (name: string, url: string, source: object = {}, max = 4) =>
  cluster.create(Pipeline, {
    ...Pipeline.make(
      { name, namespace },
      {
        source: { url, pollInterval: '200ms', ...source },
        build: { command: ['true'], output: 'dist' },
        concurrency: { max },
      },
    ),
  })
const getJob = async (name: string) => {
  const object = await cluster.get(BuildJob, namespace, name)
  return object && BuildJob.parse(object)
}
const jobOf = (name: string, what: (job: BuildJob) => unknown) =>
  until(`BuildJob ${name}: ${what}`, async () => {
    const job = await getJob(name)
    return job && what(job) ? job : undefined
  })
const conditionOf = (object: BuildJob | Pipeline, type: string) =>
  object.status?.conditions?.find((condition) => condition.type === type)
const pipelineIs = (name: string, type: string, reason: string) =>
  until(`Pipeline ${name} ${type} ${reason}`, async () => {
    const pipeline = Pipeline.parse(await cluster.get(Pipeline, namespace, name))
    const condition = conditionOf(pipeline, type)
    return condition?.status === 'True' && condition.reason === reason ? pipeline : undefined
  })
const patchJob = (name: string, spec: object) =>
  api.request(
    'PATCH',
    `/apis/shoal.dev/v1alpha1/namespaces/${namespace}/buildjobs/${name}`,
    { spec },
    'application/merge-patch+json',
  )
let polls = 0
async function take() {
  const claimer = { worker: 'w1', pollId: ++polls, probeUrl: 'http://127.0.0.1:1', probeSecret: 's'.repeat(32) }
  const taken = await claim(database, claimer)
  assert.ok(taken)
  return { name: taken.job.name, held: { jobId: taken.job.id, token: taken.token } }
}
const commit = (digit: string) => digit.repeat(40)
/** A row, without a Pipeline that could be polled. */
const queue = async (pipeline: string, digit: string, maxJobs = 9) =>
  (await enqueue(database, { namespace, pipeline, commit: commit(digit), ref: 'refs/heads/main', maxJobs })).job.name

test.before.each(async () => {
  for (const table of ['ready', 'blocked', 'slot']) await database.execute(`DELETE FROM ${table}`)
})

test('a row is shown as a BuildJob in each of its phases', async () => {
  const first = await queue('phases', 'a')
  const second = await queue('phases', 'b')
  await jobOf(first, ({ status }) => status?.phase === 'Queued' && status.queuePosition === 1)
  const waiting = await jobOf(second, ({ status }) => status?.queuePosition === 2)
  assert.is(conditionOf(waiting, 'Reconciling')?.reason, 'Queued')
  assert.is(conditionOf(waiting, 'Succeeded')?.status, 'Unknown')

  const { held, name } = await take()
  assert.is(name, first)
  const running = await jobOf(first, ({ status }) => status?.phase === 'Running')
  assert.equal([running.status?.worker, running.status?.attempt], ['w1', 1])
  assert.ok(running.status?.startedAt)
  assert.is(running.status?.queuePosition, undefined)
  await jobOf(second, ({ status }) => status?.queuePosition === 1)

  await recordUpload(database, held, { key: 'k' })
  await finish(database, held, { result: 'Built' })
  await setReplicated(database, held.jobId, '1/2')
  const replicating = await jobOf(first, ({ status }) => status?.replicated === '1/2')
  assert.equal([replicating.status?.phase, replicating.status?.artifactRef], ['Replicating', { name: first }])
  await markSucceeded(database, held.jobId)
  const done = await jobOf(first, ({ status }) => status?.phase === 'Succeeded')
  assert.equal([conditionOf(done, 'Succeeded')?.status, conditionOf(done, 'Ready')?.status], ['True', 'True'])
  assert.ok(done.status?.finishedAt)

  const other = await take()
  await finish(database, other.held, { result: 'Failed', code: 'BuildFailed', message: 'exit code 2' })
  const failed = await jobOf(second, ({ status }) => status?.phase === 'Failed')
  assert.equal(
    [conditionOf(failed, 'Succeeded')?.status, conditionOf(failed, 'Stalled')?.reason, failed.status?.message],
    ['False', 'BuildFailed', 'exit code 2'],
  )
})

test('a job that waits for a slot of its pipeline is queued without a position, and left alone', async () => {
  await queue('narrow', 'a', 1)
  const blocked = await queue('narrow', 'b', 1)
  const shown = await jobOf(blocked, ({ status }) => status?.phase === 'Queued')
  assert.is(shown.status?.queuePosition, undefined)
  const reconciles = async () => {
    const text = await metrics.registry.metrics()
    return [...text.matchAll(/^shoal_reconcile\w*_(?:total|count)\{[^}]*buildjob[^}]*\} (\d+)/gm)].reduce(
      (sum, [, count]) => sum + Number(count),
      0,
    )
  }
  assert.ok((await reconciles()) > 0)
  await until('six polls without a reconcile', async () => {
    const before = await reconciles()
    await database.query('DO SLEEP(0.3)')
    return (await reconciles()) === before
  })
})

test('more rows than a page, changed at once, all become BuildJobs', async () => {
  const rows = Array.from(
    { length: 1500 },
    (_, index) => `('demo', 'old', ${index}, 1, 'old-${index}', '', 0, 1,
    CAST(UNIX_TIMESTAMP(NOW(3)) * 1000 AS SIGNED))`,
  )
  await database.execute(
    `INSERT INTO job (namespace, pipeline, commit_id, n, name, ref, priority, created_at_ms, updated_at_ms)
     VALUES ${rows.join()}`,
  )
  await database.execute(
    `INSERT INTO outcome (job_id, phase, finished_at_ms, updated_at_ms)
     SELECT id, 'Failed', 1, updated_at_ms FROM job WHERE pipeline = 'old'`,
  )
  // Old and finished, so that they get no objects; the one after them does.
  await database.query('DO SLEEP(0.01)')
  const name = await queue('after-many', 'a')
  await jobOf(name, ({ status }) => status?.phase === 'Queued')
  await database.execute("DELETE FROM job WHERE pipeline = 'old'")
})

test('a BuildJob made by hand gets its row, once its Pipeline is there', async () => {
  const spec = { pipelineRef: 'handmade', commit: commit('c'), ref: 'refs/heads/main', priority: 5 }
  await cluster.create(BuildJob, { ...BuildJob.make({ name: 'by-hand', namespace }, spec) })
  const stalled = await jobOf('by-hand', (job) => conditionOf(job, 'Stalled')?.status === 'True')
  assert.is(conditionOf(stalled, 'Stalled')?.reason, 'NotFound')
  assert.is(await findJob(database, namespace, 'by-hand'), undefined)
  await createPipeline('handmade', newRepository('handmade').repository, { branches: ['none'] })
  const queued = await until('row', () => findJob(database, namespace, 'by-hand'))
  assert.equal([queued.commit, queued.priority, queued.phase], [commit('c'), 5, 'Queued'])
  await jobOf('by-hand', ({ status }) => status?.phase === 'Queued' && status.queuePosition === 1)
})

test('priority moves a job in line, and cancel ends it', async () => {
  const first = await queue('moved', 'a')
  const second = await queue('moved', 'b')
  await jobOf(second, ({ status }) => status?.queuePosition === 2)
  await patchJob(second, { priority: 10 })
  await jobOf(second, ({ status }) => status?.queuePosition === 1)
  await jobOf(first, ({ status }) => status?.queuePosition === 2)
  await patchJob(first, { cancel: true })
  const cancelled = await jobOf(first, ({ status }) => status?.phase === 'Cancelled')
  assert.is(conditionOf(cancelled, 'Succeeded')?.status, 'False')
  assert.is((await take()).name, second)
  await patchJob(second, { cancel: true })
  await until('the row to say so', async () => (await findJob(database, namespace, second))?.cancel)
})

test('a push made while nobody listened is found by the poll, and queued once', async () => {
  const { repository, first } = newRepository('web')
  await createPipeline('web', repository)
  const name = (of: string) => `web-${of.slice(0, 12)}`
  const job = await jobOf(name(first), ({ status }) => status?.phase === 'Queued')
  assert.equal(
    [job.spec.pipelineRef, job.spec.ref, job.metadata.labels?.['shoal.dev/pipeline']],
    ['web', 'refs/heads/main', 'web'],
  )
  await resign()
  const second = commitTo(repository)
  resign = await lead()
  await jobOf(name(second), ({ status }) => status?.phase === 'Queued')
  const polled = await pipelineIs('web', 'Ready', 'Polled')
  assert.equal([polled.status?.lastCommit, polled.status?.lastBuildJob], [second, name(second)])
  const rows = await database.query<{ n: number }>("SELECT COUNT(*) AS n FROM job WHERE pipeline = 'web'")
  assert.is(rows[0]?.n, 2)
})

test('tags that were there before the pipeline are not built, later ones are, as the commit they name', async () => {
  const { repository, first } = newRepository('tagged')
  git(repository, 'tag', 'v1')
  await createPipeline('tagged', repository, { branches: ['none'], tags: ['v*', 'stable'] })
  await pipelineIs('tagged', 'Ready', 'Polled')
  const second = commitTo(repository)
  git(repository, 'tag', '-a', '-m', 'two', 'stable')
  await jobOf(`tagged-${second.slice(0, 12)}`, ({ spec }) => spec.ref === 'refs/tags/stable')
  assert.is(await findJob(database, namespace, `tagged-${first.slice(0, 12)}`), undefined)
})

test('an unreachable repository is said, and polled again until it is back', async () => {
  const url = join(dir.path, 'late')
  await createPipeline('late', url, { tags: ['v*'] })
  const away = await pipelineIs('late', 'Reconciling', 'SourceUnreachable')
  assert.is(conditionOf(away, 'Ready')?.status, 'False')
  const { first } = newRepository('late')
  await jobOf(`late-${first.slice(0, 12)}`, ({ status }) => status?.phase === 'Queued')
  await pipelineIs('late', 'Ready', 'Polled')
})

test('a missing Secret stalls the pipeline until it is there', async () => {
  await createPipeline('locked', newRepository('locked').repository, { webhookSecretRef: { name: 'hook' } })
  const stalled = await pipelineIs('locked', 'Stalled', 'NotFound')
  assert.match(conditionOf(stalled, 'Stalled')?.message ?? '', 'hook')
  await cluster.create(core.Secret, { metadata: { name: 'hook', namespace }, stringData: { secret: 's' } })
  await pipelineIs('locked', 'Ready', 'Polled')
})

test.after(() => parts.disposeAsync())
test.run()
