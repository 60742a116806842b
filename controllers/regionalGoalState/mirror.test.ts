import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { indexName, mirrorNamespace, regionNamespace } from '../../api/regionApi.ts'
import { RegionalGoalState } from '../../api/regionalGoalState.ts'
import { Fleet } from '../../fleet/fleet.ts'
import { enrolMachine } from '../../fleet/machines.ts'
import { startApiServer } from '../../hack/parts/apiServer.ts'
import { applyCrds } from '../../hack/parts/crds.ts'
import { startDatabase } from '../../hack/parts/database.ts'
import { until } from '../../hack/parts/process.ts'
import { type GoalPayload, hashTemplate, signGoal, signIndex, template } from '../../rollout/envelope.ts'
import { systemClock as clock } from '../../runtime/clock.ts'
import { Cluster } from '../../runtime/cluster.ts'
import { core } from '../../runtime/core.ts'
import { generateSigningKey, loadSigningKey } from '../../runtime/dsse.ts'
import { createLogger } from '../../runtime/log.ts'
import { Metrics } from '../../runtime/metrics.ts'
import { Database } from '../../runtime/sql.ts'
import { GoalMirror } from './mirror.ts'

const test = suite('mirror')
const region = 'eu'
const parts = new AsyncDisposableStack()
const [hubServer, ownServer, server] = await Promise.all([
  startApiServer({ own: true }),
  startApiServer({ own: true }),
  startDatabase(),
])
for (const part of [hubServer, ownServer, server]) parts.use(part)
await Promise.all([applyCrds(hubServer), applyCrds(ownServer)])
const hub = parts.use(Cluster.load({ kubeconfig: hubServer.kubeconfigFile }))
const own = parts.use(Cluster.load({ kubeconfig: ownServer.kubeconfigFile }))
const hubKey = loadSigningKey(generateSigningKey().privateKeyPem)
const log = createLogger('test', process.env.SHOAL_TEST_LOG ?? 'silent')
const metrics = new Metrics()
const database = parts.use(new Database(await server.createSchema('fleet')))
await database.migrate(join(import.meta.dirname, '../../fleet/migrations'))
const fleet = new Fleet({
  ...{ region, database, keys: [hubKey], url: 'https://127.0.0.1:1', clock, log, metrics, pollMs: 100, holdMs: 0 },
  ...{ beginWithinMs: 1000, indexLifetimeMs: 60_000, unreachableMs: 60_000, announceMs: 100, originLeaseMs: 1000 },
  store: () => undefined,
  descriptorKey: (at) => `${at}.torrent`,
  clusters: () => [],
  certificate: () => '',
})
await hubServer.createNamespace(regionNamespace(region))
await enrolMachine(database, {
  name: 'm1',
  publicKey: generateSigningKey().publicKeyPem,
  labels: { app: 'web' },
  namespaces: ['demo'],
})
const mirror = new GoalMirror({
  ...{ region, hub, own, keys: [hubKey], store: fleet, log, metrics, clock, pollMs: 1000, reportMs: 50 },
})
const stop = new AbortController()
const running = mirror.run(stop.signal)
await mirror.synced()

const web = template.parse({
  artifact: {
    ...{ name: 'web-1', digest: `sha256:${'a'.repeat(64)}`, sizeBytes: 10, key: 'demo/web-1/1' },
    ...{ infoHash: 'b'.repeat(40), descriptorDigest: `sha256:${'d'.repeat(64)}` },
  },
  activation: { command: ['./server'] },
})
const goal = (name: string, sequence: number, more: Partial<GoalPayload> = {}): GoalPayload => ({
  ...{ region, namespace: 'demo', name, uid: 'u', place: name, selector: { matchLabels: { app: 'web' } } },
  ...{ template: web, templateHash: hashTemplate(web), target: { machines: 0, percent: 100 }, revision: sequence },
  ...{ halted: false, rollback: false, maxUnavailable: '33%', failureThreshold: '2%', sequence, issuedAt: sequence },
  ...more,
})

/** Writes an envelope where the hub would, with a view beside it that nobody may act on. */
async function write(name: string, envelope: string, sequence: number): Promise<void> {
  const object = RegionalGoalState.make(
    { name: `demo.${name}`, namespace: regionNamespace(region) },
    {
      ...{ envelope, region, goal: { namespace: 'demo', name, uid: 'u' } },
      ...{ artifact: 'web-1', revision: sequence, sequence, target: '100%', halted: false },
    },
  )
  await hub.apply(RegionalGoalState, object, { fieldManager: 'test' })
}
const say = (payload: GoalPayload, name = payload.name) => write(name, signGoal(payload, hubKey), payload.sequence)
async function sayIndex(payload: Parameters<typeof signIndex>[0]): Promise<void> {
  const metadata = { name: indexName, namespace: regionNamespace(region) }
  const object = { metadata, data: { envelope: signIndex(payload, hubKey) } }
  await hub.apply(core.ConfigMap, object, { fieldManager: 'test' })
}
const offered = async (name: string) => (await fleet.counts()).find((each) => each.name === name)?.counts
const mirrored = async (name: string) => {
  const found = await own.get(RegionalGoalState, mirrorNamespace(region), `demo.${name}`)
  return found && RegionalGoalState.parse(found)
}
const sequenceOf = async (name: string) => {
  const copy = await mirrored(name)
  return copy && { offered: (await offered(name))?.sequence, mirrored: copy.spec.sequence }
}
const refused = async () => {
  const counter = await metrics.registry.getSingleMetric('shoal_refused_envelopes_total')?.get()
  return counter?.values[0]?.value ?? 0
}
/** A goal is at sequence 5; what `mischief` writes over it is refused, and the goal stands. */
async function isRefused(name: string, mischief: () => Promise<void>): Promise<void> {
  await say(goal(name, 5))
  await until(`${name} is taken over`, async () => (await sequenceOf(name))?.mirrored === 5)
  const before = await refused()
  await mischief()
  await until(`${name} is refused`, async () => (await refused()) > before)
  assert.equal(await sequenceOf(name), { offered: 5, mirrored: 5 })
  await say(goal(name, 7))
  await until(`${name} goes on`, async () => (await sequenceOf(name))?.mirrored === 7)
}

test('a goal reaches the region’s own API server and fleet, and what machines report goes back', async () => {
  await say(goal('web', 1))
  await until('it is mirrored', async () => (await sequenceOf('web'))?.mirrored === 1)
  const status = await until('the hub has the counts', async () => {
    const object = await hub.get(RegionalGoalState, regionNamespace(region), 'demo.web')
    const found = object && RegionalGoalState.parse(object).status
    return found?.observedSequence === 1 ? found : undefined
  })
  assert.equal([status.observedRevision, status.halted, status.healthy], [1, false, 0])
  await say(goal('web', 2, { target: { machines: 1, percent: 0 } }))
  await until('the next is too', async () => (await sequenceOf('web'))?.mirrored === 2)
})

test('an envelope that was changed on the way is refused, and the goal stands', () =>
  isRefused('changed', async () => {
    const envelope = JSON.parse(signGoal(goal('changed', 6), hubKey)) as { payload: string }
    const payload = Buffer.from(envelope.payload, 'base64').toString().replace('"percent":100', '"percent":101')
    await write('changed', JSON.stringify({ ...envelope, payload: Buffer.from(payload).toString('base64') }), 6)
  }))

test('an envelope that someone else signed is refused', () =>
  isRefused('foreign', () =>
    write('foreign', signGoal(goal('foreign', 6), loadSigningKey(generateSigningKey().privateKeyPem)), 6),
  ))

test('an envelope for another region is refused', () =>
  isRefused('elsewhere', () => say(goal('elsewhere', 6, { region: 'us' }))))

test('an envelope of another goal is refused under this name', () =>
  isRefused('swapped', () => say(goal('other', 6), 'swapped')))

test('an envelope of an earlier sequence is refused', () => isRefused('replayed', () => say(goal('replayed', 4))))

test('an object that is gone from the hub ends the mirror; machines are offered the goal until the index says otherwise', async () => {
  await say(goal('gone', 1))
  await until('it is mirrored', async () => (await sequenceOf('gone'))?.mirrored === 1)
  await hub.delete(RegionalGoalState, regionNamespace(region), 'demo.gone')
  await until('the mirror is gone', async () => (await mirrored('gone')) === undefined)
  assert.is((await offered('gone'))?.sequence, 1)
  await sayIndex({ region, issuedAt: 1, goals: { 'demo/web': { revision: 2, sequence: 2 } } })
  await until('it is not offered any more', async () => (await offered('gone')) === undefined)
  assert.is((await offered('web'))?.sequence, 2)
})

test('an index for another region changes nothing', async () => {
  const before = await refused()
  await sayIndex({ region: 'us', issuedAt: 9, goals: {} })
  await until('it is refused', async () => (await refused()) > before)
  assert.is((await offered('web'))?.sequence, 2)
})

test.after(async () => {
  stop.abort()
  await running
  await parts.disposeAsync()
})
test.run()
