import { hash } from 'node:crypto'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { Artifact } from '../../api/artifact.ts'
import { GoalState, GoalStateRevision } from '../../api/goalState.ts'
import type { Kind, ObjectOf } from '../../api/kind.ts'
import { Region } from '../../api/region.ts'
import { indexName, regionNamespace } from '../../api/regionApi.ts'
import { RegionalGoalState } from '../../api/regionalGoalState.ts'
import { startApiServer } from '../../hack/parts/apiServer.ts'
import { applyCrds } from '../../hack/parts/crds.ts'
import { until } from '../../hack/parts/process.ts'
import { openGoal, openIndex } from '../../rollout/envelope.ts'
import { targetCount } from '../../rollout/plan.ts'
import { Cluster } from '../../runtime/cluster.ts'
import { core } from '../../runtime/core.ts'
import { generateSigningKey, loadSigningKey } from '../../runtime/dsse.ts'
import { EventRecorder } from '../../runtime/events.ts'
import { createLogger } from '../../runtime/log.ts'
import { Metrics } from '../../runtime/metrics.ts'
import { Reflector } from '../../runtime/reflector.ts'
import { RegionDirectory } from '../region/directory.ts'
import { GoalStateController } from './controller.ts'
import { IndexWriter } from './indexWriter.ts'
import { RegionalGoals } from './regional.ts'
import { Revisions } from './revisions.ts'

const test = suite('GoalState')
const parts = new AsyncDisposableStack()
const api = parts.use(await startApiServer({ own: true }))
await applyCrds(api)
const cluster = parts.use(Cluster.load({ kubeconfig: api.kubeconfigFile }))
const signingKey = loadSigningKey(generateSigningKey().privateKeyPem)
const log = createLogger('test', process.env.SHOAL_TEST_LOG ?? 'silent')
const regions = ['eu', 'us']
for (const name of regions) {
  const { metadata, spec, ...rest } = Region.make(
    { name },
    { store: { endpoint: 'http://127.0.0.1:1', bucket: 'shoal' } },
  )
  await cluster.create(Region, { ...rest, metadata, spec })
  await api.createNamespace(regionNamespace(name))
}

/** The regions that look at their copy when they are asked to, and find it whole. */
const looksAt = new Set(regions)
let looks = 0
async function foundWhole(namespace: string, name: string, region: string): Promise<void> {
  const replicas = Artifact.parse(await cluster.get(Artifact, namespace, name)).status?.replicas ?? []
  const checkedAt = new Date(Date.UTC(2026, 0, 1) + ++looks * 1000).toISOString()
  const changed = replicas.map((replica) => (replica.region === region ? { ...replica, checkedAt } : replica))
  const object = { metadata: { name, namespace }, status: { replicas: changed } }
  await cluster.apply(Artifact, object, { fieldManager: 'test', subresource: 'status' })
}

/** A hub, as far as goals go; ended by the function it gives. */
async function startHub(): Promise<() => Promise<void>> {
  const stop = new AbortController()
  const running: Promise<void>[] = []
  const metrics = new Metrics()
  const reflect = async <K extends Kind>(kind: K): Promise<Reflector<ObjectOf<K>>> => {
    const parse = (object: unknown) => kind.parse(object) as ObjectOf<K>
    const reflector = new Reflector<ObjectOf<K>>({ cluster, resource: kind, parse, log })
    running.push(reflector.run(stop.signal))
    await reflector.synced()
    return reflector
  }
  const regionals = await reflect(RegionalGoalState)
  const known = await reflect(Region)
  const revisions = await reflect(GoalStateRevision)
  const directory = new RegionDirectory({ list: () => known.list(), readSecret: async () => undefined })
  const controller = new GoalStateController({
    cluster,
    goals: await reflect(GoalState),
    artifacts: await reflect(Artifact),
    regionals,
    revisions: new Revisions(cluster, revisions),
    regionalGoals: new RegionalGoals({ cluster, reflector: regionals, signingKey }),
    regions: directory,
    requestReplication: async () => undefined,
    checkReplica: async (namespace, name, region) => {
      if (looksAt.has(region)) await foundWhole(namespace, name, region)
    },
    events: new EventRecorder({ cluster, component: 'test', log }),
    log,
    metrics,
    tickMs: 50,
  })
  revisions.onChange((_key, revision) => {
    if (revision) controller.notify(`${revision.metadata.namespace}/${revision.spec.goalRef}`)
  })
  const index = new IndexWriter({
    cluster,
    goals: regionals,
    regions: () => regions,
    signingKey,
    log,
    metrics,
    renewMs: 200,
  })
  running.push(controller.run(stop.signal), index.run(stop.signal))
  const end = async () => {
    stop.abort()
    await Promise.all(running)
  }
  return end
}

let endHub = await startHub()
parts.defer(() => endHub())
let names = 0
const newNamespace = async () => {
  const name = `goals-${++names}`
  await api.createNamespace(name)
  return name
}

const digest = (text: string) => `sha256:${hash('sha256', text)}`
async function artifact(namespace: string, name: string, replicated: string[] = regions): Promise<void> {
  const made = Artifact.make(
    { name, namespace },
    {
      pipelineRef: 'web',
      commit: hash('sha256', name).slice(0, 40),
      ...{
        digest: digest(name),
        sizeBytes: 10,
        key: `${namespace}/${name}/1`,
        partSizeBytes: 5_242_880,
        checksum: 'x-1',
      },
      descriptor: { infoHash: hash('sha256', name).slice(0, 40), digest: digest(`${name} descriptor`) },
      regions,
    },
  )
  await cluster.apply(Artifact, made, { fieldManager: 'test' })
  await replicate(namespace, name, replicated)
}
async function replicate(namespace: string, name: string, replicated: string[]): Promise<void> {
  const replicas = regions.map((region) => ({ region, state: replicated.includes(region) ? 'Replicated' : 'Pending' }))
  const object = { metadata: { name, namespace }, status: { replicas } }
  await cluster.apply(Artifact, object, { fieldManager: 'test', subresource: 'status' })
}

const twoWaves = [
  { regions: ['eu'], machines: 1, soak: '100ms' },
  { regions: ['*'], percent: 100 },
]
async function apply(namespace: string, artifactName: string, more: Record<string, unknown> = {}): Promise<void> {
  const goal = GoalState.make(
    { name: 'web', namespace },
    {
      artifactRef: { name: artifactName },
      activation: { command: ['./server'] },
      rollout: { waves: twoWaves },
      ...more,
    },
  )
  await cluster.apply(GoalState, goal, { fieldManager: 'test' })
}
const read = async (namespace: string) => {
  const object = await cluster.get(GoalState, namespace, 'web')
  return object && GoalState.parse(object)
}
const condition = async (namespace: string, type: string) =>
  (await read(namespace))?.status?.conditions?.find((found) => found.type === type)
const reason = (namespace: string, type: string, wanted: string) =>
  until(`${type} ${wanted}`, async () => {
    const found = await condition(namespace, type)
    if (found?.reason !== wanted) throw new Error(JSON.stringify((await read(namespace))?.status?.conditions))
    return found
  })
const regional = async (namespace: string, region: string) => {
  const object = await cluster.get(RegionalGoalState, regionNamespace(region), `${namespace}.web`)
  return object && RegionalGoalState.parse(object)
}
const told = async (namespace: string, region: string) => {
  const found = await regional(namespace, region)
  return found && openGoal(found.spec.envelope, [signingKey])
}
/** What it was told, once that is more than to fetch. */
const begun = async (namespace: string, region: string) => {
  const payload = await told(namespace, region)
  return payload?.target.machines === 1 ? payload : undefined
}

/** What the region's machines would do with what it was told; four of them, of which `failing` fail at this artifact. */
async function obey(namespace: string, region: string, failing?: string): Promise<void> {
  const payload = await told(namespace, region)
  if (!payload) return
  const wanted = targetCount(payload.target, 4)
  const fails = payload.template.artifact.name === failing && wanted > 0
  const healthy = fails ? 0 : wanted
  const failures = fails ? [{ machine: `${region}-1`, reason: 'ActivationFailed', message: 'no health' }] : []
  const counts = { desired: 4, fetched: 4, updated: healthy, healthy, failed: failures.length, unreachable: 0 }
  const status = { ...counts, failures, observedRevision: payload.revision, observedSequence: payload.sequence }
  const object = { metadata: { name: `${namespace}.web`, namespace: regionNamespace(region) }, status }
  await cluster.apply(RegionalGoalState, object, { fieldManager: 'shoal-region', subresource: 'status' })
}
/** Until the goal's condition is as wanted, regions obey. */
async function rollOut(namespace: string, type: string, wanted: string, failing?: string): Promise<void> {
  await until(`${type} ${wanted}`, async () => {
    for (const region of regions) await obey(namespace, region, failing)
    return (await condition(namespace, type))?.reason === wanted
  })
}

test('until every region has the artifact nothing is propagated; then each region is told, wave by wave', async () => {
  const namespace = await newNamespace()
  await apply(namespace, 'web-1')
  await reason(namespace, 'Reconciling', 'WaitingForArtifact')
  await artifact(namespace, 'web-1', ['eu'])
  await until('it waits for us', async () => (await condition(namespace, 'Reconciling'))?.message.includes('us'))
  assert.is(await regional(namespace, 'eu'), undefined)
  await replicate(namespace, 'web-1', regions)
  const first = await until('eu is told to begin', () => begun(namespace, 'eu'))
  const other = await until('us is told', () => told(namespace, 'us'))
  assert.equal([first.target.percent, other.target], [0, { machines: 0, percent: 0 }])
  await obey(namespace, 'eu')
  const raised = await until('the next wave', async () => {
    const payload = await told(namespace, 'us')
    return payload?.target.percent === 100 ? payload : undefined
  })
  assert.ok(raised.sequence > other.sequence)
  assert.is(raised.revision, other.revision)
  await rollOut(namespace, 'Ready', 'RolledOut')
  const { status } = (await read(namespace)) ?? {}
  assert.equal([status?.wave, status?.healthy, status?.history?.[0]?.outcome], ['2/2', 8, 'Succeeded'])
  assert.is(status?.lastGood?.artifact, 'web-1')
})

test('no machine changes before its region looked at its copy once more', async () => {
  const namespace = await newNamespace()
  await artifact(namespace, 'web-1')
  looksAt.delete('us')
  try {
    await apply(namespace, 'web-1')
    await until('the wave of us begins, and waits', async () => {
      await obey(namespace, 'eu')
      await obey(namespace, 'us')
      return /wave 2.*the copy in us once more/.test((await condition(namespace, 'Reconciling'))?.message ?? '')
    })
    assert.equal((await told(namespace, 'eu'))?.target.percent, 100, 'other regions go on')
    assert.equal((await told(namespace, 'us'))?.target, { machines: 0, percent: 0 })
  } finally {
    looksAt.add('us')
  }
  await foundWhole(namespace, 'web-1', 'us')
  await rollOut(namespace, 'Ready', 'RolledOut')
})

test('a failure holds the template and goes back to the last that worked, as a new revision', async () => {
  const namespace = await newNamespace()
  await artifact(namespace, 'web-1')
  await artifact(namespace, 'web-2')
  await apply(namespace, 'web-1')
  await rollOut(namespace, 'Ready', 'RolledOut')
  await apply(namespace, 'web-2')
  await rollOut(namespace, 'Stalled', 'RolloutFailed', 'web-2')
  const { status, spec } = (await read(namespace)) ?? {}
  assert.is(spec?.artifactRef.name, 'web-2', 'the spec is the person’s, and stays')
  assert.equal([status?.effective?.artifact, status?.effective?.revision, status?.rollback], ['web-1', 3, true])
  assert.is(status?.failures?.[0]?.reason, 'ActivationFailed')
  assert.equal(status?.history?.map(({ artifact, outcome }) => [artifact, outcome]).slice(1), [
    ['web-2', 'Failed'],
    ['web-1', 'Succeeded'],
  ])
  const held = GoalStateRevision.parse(await cluster.get(GoalStateRevision, namespace, 'web-2'))
  assert.match(held.status?.hold?.why ?? '', /1 of \d machines failed/)
  const payload = await told(namespace, 'us')
  assert.equal([payload?.rollback, payload?.template.artifact.name], [true, 'web-1'])
  // Applying the same again doesn't redo what was undone; something else does go out.
  await artifact(namespace, 'web-3')
  await apply(namespace, 'web-3')
  await rollOut(namespace, 'Ready', 'RolledOut', 'web-2')
  assert.is((await read(namespace))?.status?.effective?.artifact, 'web-3')
})

test('a first deploy that fails halts everywhere, and stays', async () => {
  const namespace = await newNamespace()
  await artifact(namespace, 'web-1')
  await apply(namespace, 'web-1')
  await rollOut(namespace, 'Stalled', 'RolloutFailed', 'web-1')
  await until('every region is halted', async () => {
    const payloads = await Promise.all(regions.map((region) => told(namespace, region)))
    return payloads.every((payload) => payload?.halted)
  })
})

test('a hub that takes over goes on in the same wave, with the same revision', async () => {
  const namespace = await newNamespace()
  await artifact(namespace, 'web-1')
  await apply(namespace, 'web-1')
  await until('the second wave', async () => {
    await obey(namespace, 'eu')
    return (await told(namespace, 'us'))?.target.percent === 100
  })
  const before = await told(namespace, 'us')
  await endHub()
  endHub = await startHub()
  await rollOut(namespace, 'Ready', 'RolledOut')
  assert.is((await told(namespace, 'us'))?.revision, before?.revision)
  assert.is((await read(namespace))?.status?.effective?.revision, 1)
})

test('a region that does not exist, and a place that is taken, stall', async () => {
  const namespace = await newNamespace()
  await artifact(namespace, 'web-1')
  await apply(namespace, 'web-1', { rollout: { waves: [{ regions: ['nowhere'], percent: 100 }] } })
  await reason(namespace, 'Stalled', 'RegionUnknown')
  const [first, second] = [await newNamespace(), await newNamespace()]
  for (const each of [first, second]) {
    await artifact(each, 'web-1')
    await apply(each, 'web-1', { place: 'shared' })
    await until('it was looked at', async () => (await condition(each, 'Ready')) !== undefined)
  }
  await until('one of both is refused', async () => {
    const found = await Promise.all([first, second].map((each) => condition(each, 'Stalled')))
    return found.filter((each) => each?.reason === 'PlaceConflict').length === 1
  })
})

test('deleting a goal stops telling regions of it', async () => {
  const namespace = await newNamespace()
  await artifact(namespace, 'web-1')
  await apply(namespace, 'web-1')
  await until('both are told', async () => (await told(namespace, 'eu')) && (await told(namespace, 'us')))
  await cluster.delete(GoalState, namespace, 'web')
  await until('it is gone', async () => (await read(namespace)) === undefined)
  assert.is(await regional(namespace, 'eu'), undefined)
  assert.is(await regional(namespace, 'us'), undefined)
})

test('each region’s index names its goals as they stand, and moves on', async () => {
  const namespace = await newNamespace()
  await artifact(namespace, 'web-1')
  await apply(namespace, 'web-1')
  // Told twice: to fetch, and to begin.
  const payload = await until('eu is told to begin', () => begun(namespace, 'eu'))
  const index = async () => {
    const map = await cluster.get<{ data: { envelope: string } }>(core.ConfigMap, regionNamespace('eu'), indexName)
    return map && openIndex(map.data.envelope, [signingKey])
  }
  // The index follows what is told; until it does, it names the goal as it stood before.
  const named = await until('the index names it as it stands', async () => {
    const found = await index()
    return found?.goals[`${namespace}/web`]?.sequence === payload.sequence ? found : undefined
  })
  assert.equal(named.goals[`${namespace}/web`], { revision: payload.revision, sequence: payload.sequence })
  await until('the index moves on', async () => ((await index())?.issuedAt ?? 0) > named.issuedAt)
})

test.after(async () => {
  await parts.disposeAsync()
})
test.run()
