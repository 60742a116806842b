import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { BuildJob } from '../../api/buildJob.ts'
import { Pipeline } from '../../api/pipeline.ts'
import { startApiServer } from '../../hack/parts/apiServer.ts'
import { applyCrds } from '../../hack/parts/crds.ts'
import { startDatabase } from '../../hack/parts/database.ts'
import { until } from '../../hack/parts/process.ts'
import { claim } from '../../queue/claim.ts'
import { findJob } from '../../queue/control.ts'
import { enqueue } from '../../queue/enqueue.ts'
import { finish } from '../../queue/finish.ts'
import { Cluster } from '../../runtime/cluster.ts'
import { EventRecorder } from '../../runtime/events.ts'
import { createLogger } from '../../runtime/log.ts'
import { Metrics } from '../../runtime/metrics.ts'
import { Reflector } from '../../runtime/reflector.ts'
import { Database } from '../../runtime/sql.ts'
import { BuildJobController } from './controller.ts'
import { FinishedJobs } from './finishedJobs.ts'

const test = suite('BuildJobs that have ended')
const parts = new AsyncDisposableStack()
const [api, mariadb] = await Promise.all([startApiServer({ own: true }), startDatabase()])
for (const part of [api, mariadb]) parts.use(part)
await applyCrds(api)
const namespace = 'demo'
await api.createNamespace(namespace)
const cluster = parts.use(Cluster.load({ kubeconfig: api.kubeconfigFile }))
const database = parts.use(new Database(await mariadb.createSchema('builds')))
await database.migrate(join(import.meta.dirname, '../../queue/migrations'))
const log = createLogger('test', process.env.SHOAL_TEST_LOG ?? 'silent')
const web = Pipeline.parse({
  metadata: { name: 'web', namespace, uid: 'of-the-pipeline' },
  spec: { source: { url: 'none' }, build: { command: ['true'], output: 'out' } },
})
test.after(() => parts.disposeAsync())

let stop = async () => {}
/** One leader, until the next. */
async function lead({ ttlMs = 3_600_000, limit = 1000 }) {
  await stop()
  const ended = new AbortController()
  const { signal } = ended
  const buildJobs = new Reflector<BuildJob>({ cluster, resource: BuildJob, parse: BuildJob.parse, log })
  const events = new EventRecorder({ cluster, component: 'test', log })
  const common = { cluster, database, events, log, metrics: new Metrics(), buildJobs }
  const finished = new FinishedJobs({ ...common, ttlMs, limit, everyMs: 50, paceMs: 1 })
  const horizonMs = () => finished.horizonMs()
  const jobs = new BuildJobController({ ...common, pipeline: () => web, pollMs: 50, horizonMs })
  const running = [buildJobs.run(signal)]
  await buildJobs.synced()
  running.push(jobs.run(signal), finished.run(signal))
  stop = async () => {
    ended.abort()
    await Promise.all(running)
  }
}
parts.defer(() => stop())

let count = 0
const commitOf = (n: number) => n.toString(16).padStart(12, '0').padEnd(40, '0')
const push = (commit = commitOf(++count)) =>
  enqueue(database, { namespace, pipeline: 'web', commit, ref: 'refs/heads/main', maxJobs: 1000 })
/** A job that failed just now: its name. */
async function failed() {
  const { job } = await push()
  const claimer = { worker: 'w', pollId: count, probeUrl: 'http://127.0.0.1:1', probeSecret: 's'.repeat(32) }
  const taken = await claim(database, claimer)
  assert.is(taken?.job.name, job.name)
  const held = { jobId: job.id, token: taken?.token ?? '' }
  await finish(database, held, { result: 'Failed', code: 'BuildFailed', message: 'exit code 2' })
  return job.name
}
const names = async () =>
  (await cluster.list(BuildJob, { namespace })).items.map(({ metadata }) => metadata.name).sort()
const getJob = async (name: string) => {
  const object = await cluster.get(BuildJob, namespace, name)
  return object && BuildJob.parse(object)
}
const jobOf = (name: string, what: (job: BuildJob) => unknown) =>
  until(`BuildJob ${name}: ${what}`, async () => {
    const job = await getJob(name)
    return job && what(job) ? job : undefined
  })
/** Waits until the mirror has passed by all that was before; the name of the job it has made. */
async function mirrored() {
  const { name } = (await push()).job
  await jobOf(name, ({ status }) => status?.phase === 'Queued')
  return name
}
const byHand = (name: string, commit: string) =>
  cluster.create(BuildJob, {
    ...BuildJob.make({ name, namespace }, { pipelineRef: 'web', commit, ref: 'refs/heads/main' }),
  })

test.before.each(async () => {
  await stop()
  stop = async () => {}
  for (const { metadata } of (await cluster.list(BuildJob, { namespace })).items)
    await cluster.delete(BuildJob, namespace, metadata.name)
  for (const table of ['ready', 'blocked', 'slot', 'outcome', 'job']) await database.execute(`DELETE FROM ${table}`)
})

test('of more than may stay the oldest go, their rows stay, and no leader brings them back', async () => {
  await lead({})
  const all: string[] = []
  for (let n = 0; n < 6; n++) all.push(await failed())
  const queued = (await push()).job.name
  await until('all are shown', async () => (await names()).length === 7)
  await lead({ limit: 2 })
  const kept = [...all.slice(-2), queued]
  await until('the last two are left', async () => (await names()).join() === kept.join())
  await lead({ limit: 2 })
  kept.push(await mirrored())
  assert.equal(await names(), kept)
  for (const name of all) assert.is((await findJob(database, namespace, name))?.phase, 'Failed')
})

test('after their time they go; the same push again finds the row, and shows nothing anew', async () => {
  await lead({})
  const name = await failed()
  await jobOf(name, ({ status }) => status?.phase === 'Failed')
  await lead({ ttlMs: 0 })
  await until('it is gone', async () => (await names()).length === 0)
  assert.equal(await push(commitOf(count)).then(({ job, created }) => [job.name, created]), [name, false])
  const next = await mirrored()
  assert.equal(await names(), [next])
})

test('what somebody changed just now is not deleted by what was known before', async () => {
  await lead({})
  const name = await failed()
  const before = await jobOf(name, ({ status }) => status?.phase === 'Failed')
  await stop()
  await cluster.patch(BuildJob, { namespace, name }, { metadata: { labels: { keep: 'me' } } })
  const stale = { list: () => [before] } as unknown as Reflector<BuildJob>
  const metrics = new Metrics()
  const signal = AbortSignal.timeout(500)
  await new FinishedJobs({ cluster, buildJobs: stale, ttlMs: 0, limit: 10, log, metrics }).run(signal)
  assert.ok(await getJob(name))
  const fresh = { list: () => [BuildJob.parse({ ...before, metadata: { ...before.metadata, uid: 'other' } })] }
  const other = { cluster, buildJobs: fresh as unknown as Reflector<BuildJob>, ttlMs: 0, limit: 10, log, metrics }
  await new FinishedJobs(other).run(AbortSignal.timeout(500))
  assert.ok(await getJob(name))
})

test('a BuildJob made by hand of a job that is over shows how it ended, for as long as any', async () => {
  await lead({})
  const name = await failed()
  await jobOf(name, ({ status }) => status?.phase === 'Failed')
  await database.execute(
    'UPDATE outcome JOIN job ON job.id = job_id SET finished_at_ms = 1000, created_at_ms = 1000 WHERE name = ?',
    [name],
  )
  await cluster.delete(BuildJob, namespace, name)
  await byHand(name, commitOf(count))
  const shown = await jobOf(name, ({ status }) => status?.phase === 'Failed')
  assert.is(shown.status?.finishedAt, new Date(1000).toISOString())
  await mirrored()
  assert.ok(await getJob(name))
})

test('a name that another build had is refused, and that build is left as it is', async () => {
  await lead({})
  const name = await failed()
  await jobOf(name, ({ status }) => status?.phase === 'Failed')
  await cluster.delete(BuildJob, namespace, name)
  await byHand(name, 'f'.repeat(40))
  // what was on its way to the deleted one may be shown first
  const isConflict = ({ type, reason }: { type: string; reason: string }) => type === 'Stalled' && reason === 'Conflict'
  const refused = await jobOf(name, ({ status }) => status?.conditions?.some(isConflict))
  const stalled = refused.status?.conditions?.find(isConflict)
  assert.match(stalled?.message ?? '', 'take another name')
  assert.is(refused.status?.phase, undefined)
  assert.is((await findJob(database, namespace, name))?.commit, commitOf(count))
})

test('a BuildJob that has ended and whose row is no longer kept is not built again', async () => {
  await lead({})
  const name = await failed()
  await jobOf(name, ({ status }) => status?.phase === 'Failed')
  await database.execute('DELETE FROM job WHERE name = ?', [name])
  await cluster.patch(BuildJob, { namespace, name }, { metadata: { labels: { touched: 'yes' } } })
  await mirrored()
  await lead({})
  await mirrored()
  assert.is(await findJob(database, namespace, name), undefined)
  assert.is((await getJob(name))?.status?.phase, 'Failed')
})

test('what is not over is shown by a leader that comes long after it was queued', async () => {
  const { name } = (await push()).job
  await database.execute('UPDATE job SET updated_at_ms = 1000, created_at_ms = 1000 WHERE name = ?', [name])
  await database.execute('UPDATE ready SET created_at_ms = 1000')
  await lead({})
  await jobOf(name, ({ status }) => status?.phase === 'Queued')
})

test.run()
