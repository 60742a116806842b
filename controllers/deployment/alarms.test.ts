import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { finish } from '../../queue/finish.ts'
import { listWorkers } from '../../queue/workers.ts'
import { systemClock as clock } from '../../runtime/clock.ts'
import { Cluster } from '../../runtime/cluster.ts'
import { core } from '../../runtime/core.ts'
import { WorkerAlarms } from './alarms.ts'
import type { AlarmNote } from './alarmWebhook.ts'
import * as on from './fixture.ts'
import { listDeployments } from './workerClass.ts'

const test = suite('alarms of silent workers')
const { cluster, database, events, log, namespace } = on
const alarmMs = 60_000
let notes: AlarmNote[] = []
let alarms: WorkerAlarms

function lead(): void {
  const notify = (note: AlarmNote) => void notes.push(note)
  alarms = new WorkerAlarms({ cluster, database, namespace, events, log, clock, alarmMs, notify })
}

test.before.each(async () => {
  await on.clear()
  notes = []
  lead()
})
test.after(() => on.parts.disposeAsync())

const look = async (silent: string[] | undefined) =>
  alarms.look(silent, await listDeployments(cluster, namespace), await listWorkers(database))
const said = () => notes.map(({ state, worker }) => `${state} ${worker}`)
const isThere = async (pod: string) => (await on.costOf(pod)) !== 'gone'
const names = async () => (await listWorkers(database)).map(({ name }) => name)
async function condition(type = 'WorkersResponsive') {
  const { status } = await on.deploymentOf('standard')
  return status?.conditions.find((one) => one.type === type)
}
/** A worker in a Pod that was last heard so long ago. */
async function silentIn(pod: string, silentMs = 2 * alarmMs, size = 'standard', random = '0a1b2c3d') {
  const worker = on.workerIn(pod, random)
  await on.hears(worker, size)
  const past = 'UPDATE worker SET last_seen_ms = last_seen_ms - ?, first_seen_ms = first_seen_ms - ? WHERE name = ?'
  await database.execute(past, [silentMs, silentMs, worker])
  return worker
}

/** May see Pods, and do nothing. */
async function allowReading(account: string): Promise<void> {
  const rules = [{ apiGroups: [''], resources: ['pods'], verbs: ['get', 'list'] }]
  await cluster.create(core.Role, { metadata: { name: account, namespace }, rules })
  await cluster.create(core.RoleBinding, {
    metadata: { name: account, namespace },
    roleRef: { apiGroup: 'rbac.authorization.k8s.io', kind: 'Role', name: account },
    subjects: [{ kind: 'ServiceAccount', name: account, namespace }],
  })
}

test('a silent worker is an Event, a condition and a note, and its Pod is replaced', async () => {
  await on.deploy('standard', 1)
  await on.addPod('p1', 'standard')
  const worker = await silentIn('p1')
  await look([worker])
  assert.not(await isThere('p1'))
  assert.match(await on.eventOf('standard', 'WorkerSilent'), new RegExp(worker))
  const raised = await condition()
  assert.equal([raised?.status, raised?.reason, raised?.message], ['False', 'WorkerSilent', `silent: ${worker}`])
  const [note] = notes
  assert.equal(
    [note?.alarm, note?.state, note?.class, note?.namespace],
    ['WorkerSilent', 'raised', 'standard', namespace],
  )
  assert.ok((note?.silentSeconds ?? 0) >= 120 && (note?.silentSeconds ?? 0) < 130)
  assert.ok(Math.abs(Date.parse(note?.lastSeen ?? '') - (Date.now() - 2 * alarmMs)) < 10_000)

  // Its Pod is gone, another has come: nothing is missing.
  await on.addPod('p2', 'standard')
  await on.hears(on.workerIn('p2'), 'standard')
  await look([worker])
  assert.equal(said(), [`raised ${worker}`, `resolved ${worker}`])
  assert.match(notes[1]?.message ?? '', /was replaced/)
  assert.equal(await names(), [on.workerIn('p2')])
  assert.is((await condition())?.status, 'True')
  assert.ok(await isThere('p2'))
})

test('an alarm is raised once, and taken back when the worker is heard', async () => {
  const worker = await silentIn('host', 2 * alarmMs, 'bare')
  await look([worker])
  await look([worker])
  assert.equal(said(), [`raised ${worker}`])
  // Its class has no Deployment.
  assert.match(await on.eventOf('shoal-hub', 'WorkerSilent', new RegExp(worker)), /is silent since/)
  await on.hears(worker, 'bare')
  await look([])
  assert.equal(said(), [`raised ${worker}`, `resolved ${worker}`])
  assert.match(notes[1]?.message ?? '', /is heard again/)
  assert.equal(await names(), [worker])
})

test('while nobody knows who is silent, nothing is raised or taken back', async () => {
  const worker = await silentIn('host', 2 * alarmMs, 'bare')
  await look([worker])
  await look(undefined)
  assert.equal(said(), [`raised ${worker}`])
  lead()
  await look([worker])
  assert.equal(said(), [`raised ${worker}`, `raised ${worker}`])
})

test('one that was heard since the last round of probes is left alone', async () => {
  await on.deploy('standard', 1)
  await on.addPod('p1', 'standard')
  const worker = on.workerIn('p1')
  await on.hears(worker, 'standard')
  await look([worker])
  assert.ok(await isThere('p1'))
  assert.equal(said(), [])
})

test('a silent worker whose Pod is gone is forgotten without an alarm', async () => {
  await on.deploy('standard', 1)
  const worker = await silentIn('p1')
  await look([worker])
  assert.equal([said(), await names()], [[], []])
})

test('a Pod is looked for in every Deployment of the class, also where there are two by mistake', async () => {
  for (const name of ['a-twin', 'standard']) await on.deploy(name, 1)
  const labels = { 'shoal.dev/worker-class': 'standard' }
  await cluster.patch(core.Deployment, { namespace, name: 'a-twin' }, { metadata: { labels } })
  await on.addPod('p1', 'standard')
  const worker = await silentIn('p1')
  await look([worker])
  assert.equal([said(), await names(), await isThere('p1')], [[`raised ${worker}`], [worker], false])
})

test('a Pod that can’t be deleted is tried again, and the others are told of all the same', async () => {
  await on.deploy('standard', 2)
  for (const pod of ['p1', 'p2']) await on.addPod(pod, 'standard')
  const workers = [await silentIn('p1'), await silentIn('p2')]
  const token = await on.api.serviceAccountToken(namespace, 'reader')
  await allowReading('reader')
  await using reader = Cluster.load({ kubeconfig: await on.api.kubeconfigFor(token, namespace) })
  const notify = (note: AlarmNote) => void notes.push(note)
  alarms = new WorkerAlarms({ cluster: reader, database, namespace, events, log, clock, alarmMs, notify })
  await look(workers)
  assert.equal(
    said(),
    workers.map((worker) => `raised ${worker}`),
  )
  assert.ok((await isThere('p1')) && (await isThere('p2')))
})

test('a container that was restarted: the Pod is kept, and the worker that was in it before is forgotten', async () => {
  await on.deploy('standard', 1)
  await on.addPod('p1', 'standard')
  const old = await silentIn('p1')
  const heard = on.workerIn('p1', 'ffffffff')
  await on.hears(heard, 'standard')
  await look([old])
  assert.equal([said(), await names()], [[], [heard]])
  assert.ok(await isThere('p1'))
})

test('a worker that holds a job is not forgotten before that is somebody else’s', async () => {
  await on.deploy('standard', 1)
  const worker = on.workerIn('p1')
  const held = await on.makeBusy(worker, 'standard')
  await database.execute('UPDATE worker SET last_seen_ms = last_seen_ms - ?', [2 * alarmMs])
  await look([worker])
  assert.equal(await names(), [worker])
  await finish(database, held, { result: 'HandedBack' })
  await look([worker])
  assert.equal(await names(), [])
})

test('conditions of the Deployment’s own controller stay, and ours is written only when it changes', async () => {
  await on.deploy('standard', 1)
  const own = { type: 'Available', status: 'True', reason: 'MinimumReplicasAvailable', message: 'as it should be' }
  const status = { conditions: [own] }
  await cluster.patch(core.Deployment, { namespace, name: 'standard', subresource: 'status' }, { status })
  await look([])
  assert.is((await condition())?.status, 'True')
  assert.is((await condition('Available'))?.reason, 'MinimumReplicasAvailable')
  const { resourceVersion } = (await on.deploymentOf('standard')).metadata
  await look([])
  assert.is((await on.deploymentOf('standard')).metadata.resourceVersion, resourceVersion)
})

test.run()
