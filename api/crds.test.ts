import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import type { ApiError } from '../hack/parts/adminClient.ts'
import { startApiServer } from '../hack/parts/apiServer.ts'
import { applyCrds } from '../hack/parts/crds.ts'
import { Artifact } from './artifact.ts'
import { BuildJob } from './buildJob.ts'
import { ConfigRepo } from './configRepo.ts'
import { GoalState, GoalStateRevision } from './goalState.ts'
import type { Kind } from './kind.ts'
import { kinds } from './kinds.ts'
import { apiVersion } from './meta.ts'
import { Pipeline } from './pipeline.ts'
import { Region } from './region.ts'

const test = suite('CRDs')
const api = await startApiServer({ own: true })
await applyCrds(api)
const namespace = 'crds'
await api.createNamespace(namespace)

type Json = Record<string, unknown>
const pathOf = (kind: Kind) =>
  `/apis/${kind.group}/${kind.version}${kind.namespaced ? `/namespaces/${namespace}` : ''}/${kind.plural}`
let names = 0
/** Creates an object; its name, and what the server made of it. */
async function create(kind: Kind, spec: Json): Promise<{ name: string; object: unknown }> {
  const name = `x${++names}`
  const metadata = { name, ...(kind.namespaced && { namespace }) }
  return { name, object: await api.request('POST', pathOf(kind), { apiVersion, kind: kind.kind, metadata, spec }) }
}
const change = (kind: Kind, name: string, spec: Json) =>
  api.request('PATCH', `${pathOf(kind)}/${name}`, { spec }, 'application/merge-patch+json')
/** The server refuses it as invalid, and says so. */
async function refused(work: Promise<unknown>, message: string | RegExp): Promise<void> {
  const error = await work.then(
    () => assert.unreachable(`accepted what should be refused: ${message}`),
    (thrown: ApiError) => thrown,
  )
  assert.is(error?.code, 422, error?.message)
  assert.match(error?.message ?? '', message)
}

const commit = 'a'.repeat(40)
const digest = `sha256:${'b'.repeat(64)}`
const jobSpec = { pipelineRef: 'web', commit, ref: 'refs/heads/main' }
const artifactSpec = {
  pipelineRef: 'web',
  commit,
  digest,
  sizeBytes: 5_000_000_000,
  key: 'crds/web/1',
  partSizeBytes: 8_388_608,
  checksum: 'abc-1',
  descriptor: { infoHash: commit, digest },
  regions: ['home'],
}
const activation = { command: ['./server'] }
const goalSpec = { artifactRef: { name: 'web-1' }, activation }
const waves = (...list: Json[]) => ({ ...goalSpec, rollout: { waves: list } })
const pipelineSpec = {
  source: { url: 'https://git.example.com/web.git' },
  build: { command: ['make'], output: 'dist' },
}
const store = { endpoint: 'https://s3.example.com', bucket: 'blobs' }

test('every kind is established, with its names and its status apart', async () => {
  for (const kind of kinds) {
    const crd = (await api.request(
      'GET',
      `/apis/apiextensions.k8s.io/v1/customresourcedefinitions/${kind.plural}.${kind.group}`,
    )) as { status: { conditions: { type: string; status: string; message: string }[] } }
    const is = Object.fromEntries(crd.status.conditions.map(({ type, status }) => [type, status]))
    assert.is(is.Established, 'True', kind.kind)
    assert.is(is.NamesAccepted, 'True', kind.kind)
    assert.is(is.NonStructuralSchema ?? 'False', 'False', kind.kind)
  }
  const group = (await api.request('GET', '/apis/shoal.dev/v1alpha1')) as {
    resources: { name: string; categories?: string[] }[]
  }
  for (const kind of kinds) {
    assert.ok(group.resources.find(({ name, categories }) => name === kind.plural && categories?.includes('shoal')))
    assert.ok(group.resources.some(({ name }) => name === `${kind.plural}/status`))
  }
})

test('the server fills in the defaults that zod fills in', async () => {
  const cases: [Kind, Json][] = [
    [Pipeline, pipelineSpec],
    [BuildJob, jobSpec],
    [Artifact, artifactSpec],
    [GoalState, goalSpec],
    [GoalState, { ...goalSpec, activation: { ...activation, health: { http: { port: '$(PORT)' } } } }],
    [GoalState, waves({ regions: ['*'], machines: 1 })],
    [
      GoalStateRevision,
      { goalRef: 'web', revision: 1, hash: 'h', template: { artifactRef: { name: 'w' }, activation } },
    ],
    [Region, { store }],
    [ConfigRepo, { url: 'https://git.example.com/config.git', serviceAccountName: 'web' }],
  ]
  for (const [kind, spec] of cases) {
    const { object } = await create(kind, spec)
    const byServer = (object as { spec: Json }).spec
    const byZod = (kind.parse({ metadata: { name: 'x' }, spec }) as { spec: Json }).spec
    assert.equal(byServer, byZod, kind.kind)
    assert.equal((kind.parse(object) as { spec: Json }).spec, byZod, kind.kind)
  }
})

test('what a BuildJob builds does not change, and a cancelled one stays cancelled', async () => {
  const { name } = await create(BuildJob, jobSpec)
  await refused(change(BuildJob, name, { commit: 'c'.repeat(40) }), 'commit is immutable')
  await refused(change(BuildJob, name, { ref: 'refs/heads/other' }), 'ref is immutable')
  await refused(change(BuildJob, name, { pipelineRef: 'other' }), 'pipelineRef is immutable')
  await change(BuildJob, name, { priority: 5 })
  await change(BuildJob, name, { cancel: true })
  await change(BuildJob, name, { priority: 6 })
  await refused(change(BuildJob, name, { cancel: false }), 'stays cancelled')
  await refused(change(BuildJob, name, { cancel: null }), 'stays cancelled')
  await refused(create(BuildJob, { ...jobSpec, commit: 'main' }), 'spec.commit')
  await refused(create(BuildJob, { ...jobSpec, priority: 1001 }), 'spec.priority')
})

test('artifacts and revisions are immutable', async () => {
  const artifact = await create(Artifact, artifactSpec)
  await refused(change(Artifact, artifact.name, { digest: `sha256:${'d'.repeat(64)}` }), 'an artifact is immutable')
  await refused(change(Artifact, artifact.name, { regions: ['home', 'far'] }), 'an artifact is immutable')
  await refused(change(Artifact, artifact.name, { provenance: '{}' }), 'an artifact is immutable')
  const template = { artifactRef: { name: 'w' }, activation }
  const revision = await create(GoalStateRevision, { goalRef: 'web', revision: 1, hash: 'h', template })
  await refused(change(GoalStateRevision, revision.name, { revision: 2 }), 'a revision is immutable')
})

test('a wave counts machines or takes a share of them, not both and not neither', async () => {
  const regions = ['home']
  await create(GoalState, waves({ regions, machines: 1 }, { regions, percent: 100 }))
  await refused(create(GoalState, waves({ regions, machines: 1, percent: 10 })), 'either machines or percent')
  await refused(create(GoalState, waves({ regions })), 'either machines or percent')
  await refused(create(GoalState, waves({ regions, percent: 101 })), 'percent')
  await refused(create(GoalState, waves()), 'waves')
})

test('counts and shares are a number or a percentage', async () => {
  for (const failureThreshold of [0, 3, '0%', '100%'])
    await create(GoalState, { ...goalSpec, rollout: { failureThreshold } })
  for (const failureThreshold of [-1, '101%', '3', 'x%', 1.5])
    await refused(create(GoalState, { ...goalSpec, rollout: { failureThreshold } }), 'failureThreshold')
  for (const maxUnavailable of [0, '0%'])
    await refused(create(GoalState, { ...goalSpec, rollout: { maxUnavailable } }), 'none can be updated')
  for (const port of [0, 70_000, '80', '$(port)'])
    await refused(create(GoalState, { ...goalSpec, activation: { ...activation, health: { http: { port } } } }), 'port')
})

test('the home region has credentials', async () => {
  const credentialsSecretRef = { namespace, name: 'store' }
  await refused(create(Region, { home: true, store }), 'credentialsSecretRef')
  const { name } = await create(Region, { home: true, store: { ...store, credentialsSecretRef } })
  await refused(change(Region, name, { store: { credentialsSecretRef: null } }), 'credentialsSecretRef')
})

test('a pipeline is built for all regions or for those it names', async () => {
  await create(Pipeline, { ...pipelineSpec, regions: ['home', 'far'] })
  await refused(create(Pipeline, { ...pipelineSpec, regions: ['*', 'far'] }), 'a list of names')
  await refused(create(Pipeline, { ...pipelineSpec, regions: [] }), 'regions')
  const source = { ...pipelineSpec.source, pollInterval: 'soon' }
  await refused(create(Pipeline, { ...pipelineSpec, source }), 'pollInterval')
  await refused(create(Pipeline, { ...pipelineSpec, build: { output: 'dist' } }), 'command')
})

test.after(async () => {
  await api[Symbol.asyncDispose]()
})
test.run()
