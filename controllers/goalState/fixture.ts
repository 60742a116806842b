/** For the tests of this folder: a hub, as far as goals go, over a real API server; and regions that do as they are told. */
import { hash } from 'node:crypto'
import { Artifact } from '../../api/artifact.ts'
import { GoalState, GoalStateRevision } from '../../api/goalState.ts'
import type { Kind, ObjectOf } from '../../api/kind.ts'
import { Region } from '../../api/region.ts'
import { regionNamespace } from '../../api/regionApi.ts'
import { RegionalGoalState } from '../../api/regionalGoalState.ts'
import { startApiServer } from '../../hack/parts/apiServer.ts'
import { applyCrds } from '../../hack/parts/crds.ts'
import { until } from '../../hack/parts/process.ts'
import { openGoal } from '../../rollout/envelope.ts'
import { targetCount } from '../../rollout/plan.ts'
import { Cluster } from '../../runtime/cluster.ts'
import { generateSigningKey, loadSigningKey } from '../../runtime/dsse.ts'
import { EventRecorder } from '../../runtime/events.ts'
import { createLogger } from '../../runtime/log.ts'
import { Metrics } from '../../runtime/metrics.ts'
import { Reflector } from '../../runtime/reflector.ts'
import { RegionDirectory } from '../region/directory.ts'
import { KnownRegions } from '../region/knownRegions.ts'
import { GoalStateController } from './controller.ts'
import { IndexWriter } from './indexWriter.ts'
import { RegionalGoals } from './regional.ts'
import { Revisions } from './revisions.ts'
import { isSettled } from './status.ts'

export const parts = new AsyncDisposableStack()
export const api = parts.use(await startApiServer({ own: true }))
await applyCrds(api)
export const cluster = parts.use(Cluster.load({ kubeconfig: api.kubeconfigFile }))
export const signingKey = loadSigningKey(generateSigningKey().privateKeyPem)
const log = createLogger('test', process.env.SHOAL_TEST_LOG ?? 'silent')
export const regions = ['eu', 'us']
await api.createNamespace('shoal-system')
export async function addRegion(name: string, more: { cordoned?: boolean } = {}): Promise<void> {
  const { metadata, spec, ...rest } = Region.make(
    { name },
    { store: { endpoint: 'http://127.0.0.1:1', bucket: 'shoal' }, ...more },
  )
  await cluster.create(Region, { ...rest, metadata, spec })
}
for (const name of regions) {
  await addRegion(name)
  await api.createNamespace(regionNamespace(name))
}

/** The regions that look at their copy when they are asked to, and find it whole. */
export const looksAt = new Set(regions)
let looks = 0
export async function foundWhole(namespace: string, name: string, region: string): Promise<void> {
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
  const goals = await reflect(GoalState)
  const known = await reflect(Region)
  const revisions = await reflect(GoalStateRevision)
  const directory = new RegionDirectory({ list: () => known.list(), readSecret: async () => undefined })
  const controller = new GoalStateController({
    cluster,
    goals,
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
    ...{ tickMs: 50, checkEveryMs: 50 },
  })
  revisions.onChange((_key, revision) => {
    if (revision) controller.notify(`${revision.metadata.namespace}/${revision.spec.goalRef}`)
  })
  const index = new IndexWriter({
    cluster,
    goals: regionals,
    isSettled: ({ goal, revision }) => isSettled(goals.get(`${goal.namespace}/${goal.name}`), revision),
    regions: () => regions,
    signingKey,
    log,
    metrics,
    renewMs: 200,
  })
  const namespace = 'shoal-system'
  const knownRegions = new KnownRegions({ cluster, namespace, regions: () => directory.names(), log, metrics })
  known.onChange(() => knownRegions.notify())
  running.push(controller.run(stop.signal), index.run(stop.signal), knownRegions.run(stop.signal))
  const end = async () => {
    stop.abort()
    await Promise.all(running)
  }
  return end
}

let endHub = await startHub()
parts.defer(() => endHub())

/** Another hub takes over; `meanwhile` none leads. */
export async function restartHub(meanwhile?: () => Promise<void>): Promise<void> {
  await endHub()
  await meanwhile?.()
  endHub = await startHub()
}

let names = 0
export const newNamespace = async () => {
  const name = `goals-${++names}`
  await api.createNamespace(name)
  return name
}

const digest = (text: string) => `sha256:${hash('sha256', text)}`
export async function artifact(namespace: string, name: string, replicated: string[] = regions): Promise<void> {
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
export async function replicate(namespace: string, name: string, replicated: string[]): Promise<void> {
  const replicas = regions.map((region) => ({ region, state: replicated.includes(region) ? 'Replicated' : 'Pending' }))
  const object = { metadata: { name, namespace }, status: { replicas } }
  await cluster.apply(Artifact, object, { fieldManager: 'test', subresource: 'status' })
}

const twoWaves = [
  { regions: ['eu'], machines: 1, soak: '100ms' },
  { regions: ['*'], percent: 100 },
]
export async function apply(
  namespace: string,
  artifactName: string,
  more: Record<string, unknown> = {},
): Promise<void> {
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
export const read = async (namespace: string) => {
  const object = await cluster.get(GoalState, namespace, 'web')
  return object && GoalState.parse(object)
}
export const condition = async (namespace: string, type: string) =>
  (await read(namespace))?.status?.conditions?.find((found) => found.type === type)
export const reason = (namespace: string, type: string, wanted: string) =>
  until(`${type} ${wanted}`, async () => {
    const found = await condition(namespace, type)
    if (found?.reason !== wanted) throw new Error(JSON.stringify((await read(namespace))?.status?.conditions))
    return found
  })
export const regional = async (namespace: string, region: string) => {
  const object = await cluster.get(RegionalGoalState, regionNamespace(region), `${namespace}.web`)
  return object && RegionalGoalState.parse(object)
}
export const told = async (namespace: string, region: string) => {
  const found = await regional(namespace, region)
  return found && openGoal(found.spec.envelope, [signingKey])
}
/** What it was told, once that is more than to fetch. */
export const begun = async (namespace: string, region: string) => {
  const payload = await told(namespace, region)
  return payload?.target.machines === 1 ? payload : undefined
}

/** What the region's machines would do with what it was told; four of them, of which `failing` fail at this artifact. */
export async function obey(namespace: string, region: string, failing?: string): Promise<void> {
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
export async function rollOut(namespace: string, type: string, wanted: string, failing?: string): Promise<void> {
  await until(`${type} ${wanted}`, async () => {
    for (const region of regions) await obey(namespace, region, failing)
    return (await condition(namespace, type))?.reason === wanted
  })
}
