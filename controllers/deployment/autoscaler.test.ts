import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { finish } from '../../queue/finish.ts'
import { queueFigures } from '../../queue/load.ts'
import { drain, listWorkers } from '../../queue/workers.ts'
import { FakeClock } from '../../runtime/clock.fake.ts'
import { core } from '../../runtime/core.ts'
import { Metrics } from '../../runtime/metrics.ts'
import { Autoscaler } from './autoscaler.ts'
import * as on from './fixture.ts'
import { listDeployments } from './workerClass.ts'

const test = suite('autoscaler')
const { cluster, database, events, log, namespace } = on
const coolDownMs = 180_000
let clock: FakeClock
let autoscaler: Autoscaler

/** A leader that leads from now on. */
function lead(): void {
  autoscaler = new Autoscaler({
    ...{ cluster, database, events, log, clock, alarmMs: 60_000 },
    policy: { targetWaitMs: 30_000, startMs: 45_000, coolDownMs },
    wanted: new Metrics().gauge('workers_wanted', 'Of the test.', ['class']),
  })
  autoscaler.begin()
}

test.before.each(async () => {
  await on.clear()
  clock = new FakeClock()
  lead()
  // The first cool-down is over, where a test is not about it.
  await clock.advance(coolDownMs)
})
test.after(() => on.parts.disposeAsync())

const look = async () => ({
  deployments: await listDeployments(cluster, namespace),
  workers: await listWorkers(database),
  figures: await queueFigures(database),
})
const scale = async () => autoscaler.scale(await look())
const states = async () =>
  Object.fromEntries(
    (await listWorkers(database)).map(({ name, job, draining }) => [
      name.slice(0, 2),
      job ? 'busy' : draining ? 'draining' : 'idle',
    ]),
  )
/** Three Pods with a worker each, of which the first are busy; the Deployment wants one at least. */
async function three({ busy, names = ['p1', 'p2', 'p3'] }: { busy: number; names?: string[] }) {
  await on.deploy('standard', 3)
  const held = []
  for (const [n, name] of names.entries()) {
    await on.addPod(name, 'standard')
    if (n < busy) held.push(await on.makeBusy(on.workerIn(name), 'standard'))
    else await on.hears(on.workerIn(name), 'standard')
    // The order in which they came shows in their rows.
    await database.query('DO SLEEP(0.002)')
  }
  return held
}

test('jobs that wait get workers, up to the bound; the Event says why, and nothing is written twice', async () => {
  await on.deploy('standard', 1)
  for (let n = 0; n < 4; n++) await on.push()
  await scale()
  assert.is(await on.replicasOf('standard'), 5)
  assert.match(await on.eventOf('standard', 'ScaledUp', /from 1 to 5/), /4 jobs ready, 0 workers busy/)
  const { resourceVersion } = (await on.deploymentOf('standard')).metadata
  await scale()
  assert.is((await on.deploymentOf('standard')).metadata.resourceVersion, resourceVersion)
  for (let n = 0; n < 20; n++) await on.push()
  await scale()
  assert.is(await on.replicasOf('standard'), 10)
})

test('a Deployment without the label is left alone', async () => {
  await on.deploy('standard', 3)
  await cluster.patch(core.Deployment, { namespace, name: 'standard' }, { metadata: { labels: null } })
  await scale()
  const found = await cluster.get<{ spec: { replicas: number } }>(core.Deployment, namespace, 'standard')
  assert.is(found?.spec.replicas, 3)
})

test('annotations that can’t be read are said in an Event, and change nothing; other classes are scaled', async () => {
  await on.deploy('large', 3, { 'shoal.dev/max-workers': 'many' })
  await on.deploy('standard', 1, { 'shoal.dev/min-workers': '2', 'shoal.dev/max-workers': '4' })
  await scale()
  assert.match(await on.eventOf('large', 'Invalid'), /shoal.dev\/max-workers: want a whole number/)
  assert.equal([await on.replicasOf('large'), await on.replicasOf('standard')], [3, 2])
})

test('a second Deployment of a class is refused', async () => {
  await on.deploy('standard', 3)
  await on.deploy('a-twin', 3)
  await cluster.patch(
    core.Deployment,
    { namespace, name: 'a-twin' },
    { metadata: { labels: { 'shoal.dev/worker-class': 'standard' } } },
  )
  await scale()
  assert.match(await on.eventOf('standard', 'Invalid', /a-twin/), /has the class standard too/)
})

test('only idle workers go: the youngest first, drained before the scale is lowered by as many', async () => {
  await three({ busy: 1 })
  await scale()
  assert.equal(await states(), { p1: 'busy', p2: 'idle', p3: 'draining' })
  assert.is(await on.replicasOf('standard'), 2)
  assert.equal([await on.costOf('p1'), await on.costOf('p2'), await on.costOf('p3')], ['1000', 'none', '-1000'])
  assert.match(await on.eventOf('standard', 'ScaledDown', /from 3 to 2/), /1 workers busy/)
})

test('while all build nobody goes, though fewer are allowed; when builds end, they go', async () => {
  const [first] = await three({ busy: 3 })
  await cluster.patch(
    core.Deployment,
    { namespace, name: 'standard' },
    { metadata: { annotations: { 'shoal.dev/max-workers': '1' } } },
  )
  await scale()
  assert.is(await on.replicasOf('standard'), 3)
  assert.ok(first)
  await finish(database, first, { result: 'Failed', code: 'BuildFailed', message: '' })
  await clock.advance(coolDownMs)
  await scale()
  assert.is(await on.replicasOf('standard'), 2)
  assert.equal(await states(), { p1: 'draining', p2: 'busy', p3: 'busy' })
})

test('a new leader lets nobody go for one cool-down, but adds', async () => {
  await three({ busy: 0 })
  lead()
  await clock.advance(coolDownMs - 1000)
  await scale()
  assert.is(await on.replicasOf('standard'), 3)
  for (let n = 0; n < 4; n++) await on.push()
  await scale()
  assert.is(await on.replicasOf('standard'), 5)
})

test('a leader that died after draining, before the scale: the next one goes on with the same workers', async () => {
  await three({ busy: 0 })
  await drain(database, [on.workerIn('p1'), on.workerIn('p2')])
  await scale()
  assert.equal(await states(), { p1: 'draining', p2: 'draining', p3: 'idle' })
  assert.is(await on.replicasOf('standard'), 1)
})

test('drained workers that are needed again, and nobody stops, get jobs again', async () => {
  await three({ busy: 0 })
  await scale()
  assert.equal(await states(), { p1: 'idle', p2: 'draining', p3: 'draining' })
  for (let n = 0; n < 3; n++) await on.push()
  // One of them is stopped already, its process about to end, the other is not: somebody scaled up again before.
  await cluster.delete(core.Pod, namespace, 'p3')
  await cluster.patch(core.Deployment, { namespace, name: 'standard', subresource: 'scale' }, { spec: { replicas: 2 } })
  await scale()
  assert.equal(await states(), { p1: 'idle', p2: 'idle', p3: 'draining' })
  assert.is(await on.costOf('p2'), 'none')
  assert.ok((await on.replicasOf('standard')) >= 3)
})

test('while the ReplicaSet is still to take some, those stay drained and no more are chosen; after minutes they are of use', async () => {
  await three({ busy: 0 })
  await scale()
  await on.push()
  await scale()
  await scale()
  assert.equal(await states(), { p1: 'idle', p2: 'draining', p3: 'draining' })
  await clock.advance(180_001)
  await on.push()
  await scale()
  assert.equal(await states(), { p1: 'idle', p2: 'idle', p3: 'idle' })
})

test('a worker that builds in a Pod that is not ready would be taken first: nobody goes', async () => {
  await three({ busy: 1 })
  await on.setReady('p1', false)
  await scale()
  assert.is(await on.replicasOf('standard'), 3)
  assert.equal(await states(), { p1: 'busy', p2: 'idle', p3: 'idle' })
})

test('Pods that are not there yet, or not ready, go before those that could build', async () => {
  await on.deploy('standard', 4)
  await on.addPod('p1', 'standard')
  await on.hears(on.workerIn('p1'), 'standard')
  await on.addPod('p2', 'standard', false)
  await scale()
  assert.is(await on.replicasOf('standard'), 1)
  assert.equal(await states(), { p1: 'idle' })
})

test('a look that somebody overtook writes nothing', async () => {
  await on.deploy('standard', 1)
  for (let n = 0; n < 4; n++) await on.push()
  const old = await look()
  await cluster.patch(core.Deployment, { namespace, name: 'standard', subresource: 'scale' }, { spec: { replicas: 7 } })
  await autoscaler.scale(old)
  assert.is(await on.replicasOf('standard'), 7)
})

test('in their hours the larger workers are filled first, after them they go as builds end', async () => {
  const hours = { 'shoal.dev/min-workers': '0', 'shoal.dev/max-workers': '3' }
  const hour = new Date(clock.now()).getUTCHours()
  await on.deploy('large', 0, { ...hours, 'shoal.dev/hours': `${hour}-${(hour + 1) % 24}` })
  await on.deploy('standard', 1)
  for (let n = 0; n < 5; n++) await on.push()
  await scale()
  assert.equal([await on.replicasOf('large'), await on.replicasOf('standard')], [3, 3])
  await clock.advance(3_600_000)
  await scale()
  assert.equal([await on.replicasOf('large'), await on.replicasOf('standard')], [0, 6])
})

test('a worker of a class that nobody scales does not stay drained', async () => {
  await on.hears(on.workerIn('p1'), 'bare')
  await drain(database, [on.workerIn('p1')])
  await scale()
  assert.equal(await states(), { p1: 'idle' })
})

test.run()
