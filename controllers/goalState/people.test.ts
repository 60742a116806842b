import { execFile } from 'node:child_process'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { Agent, fetch } from 'undici'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { z } from 'zod'
import { Artifact } from '../../api/artifact.ts'
import { GoalState, GoalStateRevision } from '../../api/goalState.ts'
import { goalsAnswer } from '../../api/goalsApi.ts'
import { Region } from '../../api/region.ts'
import { applyAdmission } from '../../hack/parts/admission.ts'
import { until } from '../../hack/parts/process.ts'
import { ApiClient } from '../../runtime/apiClient.ts'
import { TokenReviewer } from '../../runtime/identity.ts'
import { createLogger } from '../../runtime/log.ts'
import { Metrics } from '../../runtime/metrics.ts'
import { createServer as createApi, listen } from '../../runtime/server.ts'
import {
  addRegion,
  api,
  apply,
  artifact,
  cluster,
  condition,
  newNamespace,
  obey,
  parts,
  read,
  reason,
  regions,
  rollOut,
  told,
} from './fixture.ts'
import { registerGoalsRoutes } from './goalsRoutes.ts'

const test = suite('people and rollouts')
const root = join(import.meta.dirname, '../..')

await applyAdmission(api)
/** A person by a token of their own: all may steer rollouts, some may approve. */
const rules = {
  steers: [
    { apiGroups: ['shoal.dev'], resources: ['goalstates', 'goalstaterevisions'], verbs: ['get', 'list'] },
    { apiGroups: ['shoal.dev'], resources: ['goalstaterevisions/status'], verbs: ['patch', 'update'] },
  ],
  deploys: [{ apiGroups: ['shoal.dev'], resources: ['goalstates', 'artifacts'], verbs: ['get', 'patch'] }],
  lists: [{ apiGroups: ['shoal.dev'], resources: ['goalstates', 'artifacts'], verbs: ['list'] }],
  approves: [{ apiGroups: ['shoal.dev'], resources: ['goalstates'], verbs: ['approve'] }],
}
async function person(namespace: string, name: string, ...may: (keyof typeof rules)[]): Promise<string> {
  const token = await api.serviceAccountToken(namespace, name)
  for (const each of may) {
    const path = `/apis/rbac.authorization.k8s.io/v1/namespaces/${namespace}`
    const metadata = { name: `${name}-${each}` }
    await api.request('POST', `${path}/roles`, { metadata, rules: rules[each] })
    await api.request('POST', `${path}/rolebindings`, {
      metadata,
      roleRef: { apiGroup: 'rbac.authorization.k8s.io', kind: 'Role', name: metadata.name },
      subjects: [{ kind: 'ServiceAccount', name, namespace }],
    })
  }
  return api.kubeconfigFor(token, namespace)
}
/** @returns what was printed, of either kind. */
async function shoal(kubeconfig: string, ...args: string[]): Promise<string> {
  const env = { ...process.env, KUBECONFIG: kubeconfig, NO_COLOR: '1' }
  const run = promisify(execFile)(process.execPath, [join(root, 'main.ts'), ...args], { env })
  return run.then(
    ({ stdout }) => stdout,
    ({ stderr }: { stderr: string }) => stderr,
  )
}
const revision = async (namespace: string, number: number) =>
  GoalStateRevision.parse(await cluster.get(GoalStateRevision, namespace, `web-${number}`))
const halted = async (namespace: string) => {
  const payloads = await Promise.all(regions.map((region) => told(namespace, region)))
  return payloads.map((payload) => payload?.halted)
}

test('paused, every region halts at once; resumed, it goes on in the same wave; both are kept with who and why', async () => {
  const namespace = await newNamespace()
  const ada = await person(namespace, 'ada', 'steers')
  await artifact(namespace, 'web-1')
  await apply(namespace, 'web-1', { rollout: { waves: [{ regions: ['*'], percent: 100 }] } })
  await until('it began', async () => (await told(namespace, 'us'))?.target.percent === 100)
  assert.match(await shoal(ada, 'pause', 'web'), /required option '--why/)
  assert.match(await shoal(ada, 'pause', 'web', '--why', 'the database is slow'), /web is paused/)
  await reason(namespace, 'Reconciling', 'Paused')
  assert.equal(await halted(namespace), [true, true])
  assert.match((await condition(namespace, 'Reconciling'))?.message ?? '', /ada: the database is slow/)
  assert.match(await shoal(ada, 'pause', 'web', '--why', 'twice'), /paused already/)
  assert.match(await shoal(ada, 'resume', 'web'), /web goes on/)
  await rollOut(namespace, 'Ready', 'RolledOut')
  const { status } = await revision(namespace, 1)
  assert.equal(
    status?.log?.map(({ verb, by, why }) => [verb, by, why]),
    [
      ['Pause', `system:serviceaccount:${namespace}:ada`, 'the database is slow'],
      ['Resume', `system:serviceaccount:${namespace}:ada`, 'resume'],
    ],
  )
})

test('a wave waits for someone who may approve', async () => {
  const namespace = await newNamespace()
  const ada = await person(namespace, 'ada', 'steers')
  const grace = await person(namespace, 'grace', 'steers', 'approves')
  await artifact(namespace, 'web-1')
  const waves = [
    { regions: ['eu'], machines: 1 },
    { regions: ['*'], percent: 100, approval: true },
  ]
  await apply(namespace, 'web-1', { rollout: { waves } })
  await rollOut(namespace, 'Reconciling', 'AwaitingApproval')
  assert.is((await told(namespace, 'us'))?.target.percent, 0)
  assert.match(await shoal(ada, 'approve', 'web'), /may not approve the goal web/)
  assert.match(await shoal(grace, 'approve', 'web', '--wave', '1'), /needs no approval/)
  assert.match(await shoal(grace, 'approve', 'web'), /may begin wave 2/)
  await rollOut(namespace, 'Ready', 'RolledOut')
})

test('nobody says something in another’s name, unsays what was said, or says it beside the log', async () => {
  const namespace = await newNamespace()
  const ada = await person(namespace, 'ada', 'steers')
  await artifact(namespace, 'web-1')
  await apply(namespace, 'web-1')
  await rollOut(namespace, 'Ready', 'RolledOut')
  assert.match(await shoal(ada, 'pause', 'web', '--why', 'so'), /is paused/)
  const token = await api.serviceAccountToken(namespace, 'ada')
  const path = `${api.url}/apis/shoal.dev/v1alpha1/namespaces/${namespace}/goalstaterevisions/web-1/status`
  const patch = async (status: object) => {
    const response = await fetch(path, {
      method: 'PATCH',
      headers: { authorization: `Bearer ${token}`, 'content-type': 'application/merge-patch+json' },
      body: JSON.stringify({ status }),
      dispatcher: new Agent({ connect: { ca: api.ca } }),
    })
    return ((await response.json()) as { message?: string }).message ?? `${response.status}`
  }
  const at = '2026-01-01T00:00:00Z'
  const { log = [] } = (await revision(namespace, 1)).status ?? {}
  const by = log[0]?.by
  const word = { verb: 'Hold', by: 'grace', at, why: 'x' }
  assert.match(await patch({ log: [...log, word] }), /by has to be who asks/)
  assert.match(await patch({ hold: { by: 'grace', at, why: 'x' }, log: [...log, { ...word, by }] }), /by has to be who/)
  assert.match(await patch({ log: [] }), /entries of status.log stay/)
  assert.match(await patch({ pause: null }), /is said in status.log too/)
})

test('aborted, a rollout goes back to what worked, and the same spec is not rolled out again until it is released', async () => {
  const namespace = await newNamespace()
  const ada = await person(namespace, 'ada', 'steers')
  for (const name of ['web-1', 'web-2']) await artifact(namespace, name)
  await apply(namespace, 'web-1')
  await rollOut(namespace, 'Ready', 'RolledOut')
  assert.match(await shoal(ada, 'abort', 'web', '--why', 'x'), /nothing of web is being rolled out/)
  await apply(namespace, 'web-2')
  await until('it began', async () => (await read(namespace))?.status?.effective?.artifact === 'web-2')
  assert.match(await shoal(ada, 'abort', 'web', '--why', 'complaints'), /goes back to web-1/)
  await rollOut(namespace, 'Stalled', 'Held')
  const { status } = (await read(namespace)) ?? {}
  assert.equal([status?.effective?.artifact, status?.rollback], ['web-1', true])
  const outcomes = status?.history?.map(({ artifact, outcome }) => [artifact, outcome])
  assert.equal(outcomes, [
    ['web-1', 'Succeeded'],
    ['web-2', 'Undone'],
    ['web-1', 'Succeeded'],
  ])
  await apply(namespace, 'web-2', { place: 'web' })
  assert.match(await shoal(ada, 'retry', 'web'), /rolls out web-2 again/)
  await rollOut(namespace, 'Ready', 'RolledOut')
  assert.is((await read(namespace))?.status?.effective?.artifact, 'web-2')
})

test('a deploy is shown before it is done', async () => {
  const namespace = await newNamespace()
  const ada = await person(namespace, 'ada', 'deploys')
  for (const name of ['web-1', 'web-2']) await artifact(namespace, name)
  await apply(namespace, 'web-1')
  await rollOut(namespace, 'Ready', 'RolledOut')
  assert.match(await shoal(ada, 'deploy', 'web', 'web-9', '--dry-run'), /there is no Artifact web-9/)
  const plan = await shoal(ada, 'deploy', 'web', 'web-2', '--dry-run')
  assert.match(plan, /^1 +eu +1 +1 of 4 +1 +soak 100ms$/m)
  assert.match(plan, /^2 +us +4 +4 of 4 +2 *$/m)
  assert.match(plan, /10 B to each of 8 machines at most/)
  assert.is((await read(namespace))?.spec.artifactRef.name, 'web-1')
  assert.match(await shoal(ada, 'deploy', 'web', 'web-2'), /web rolls out web-2/)
  await rollOut(namespace, 'Ready', 'RolledOut')
  assert.is((await read(namespace))?.status?.effective?.artifact, 'web-2')
})

test('the page shows goals to who may list them, and deploys as whoever asks', async () => {
  const namespace = await newNamespace()
  for (const name of ['web-1', 'web-2']) await artifact(namespace, name)
  await apply(namespace, 'web-1')
  await rollOut(namespace, 'Ready', 'RolledOut')
  const [goal, found] = [await read(namespace), Artifact.parse(await cluster.get(Artifact, namespace, 'web-2'))]
  const server = createApi({ log: createLogger('test', 'silent'), metrics: new Metrics() })
  registerGoalsRoutes(server, {
    ...{ cluster, tokens: new TokenReviewer(cluster, undefined) },
    ...{ goals: () => (goal ? [goal] : []), artifacts: () => [found] },
  })
  const { url } = await listen(server, { host: '127.0.0.1', port: 0 })
  try {
    await person(namespace, 'ada', 'lists', 'deploys')
    await person(namespace, 'grace', 'steers')
    const ask = async (name: string, method: 'GET' | 'POST', path: string, body?: object) => {
      const token = await api.serviceAccountToken(namespace, name)
      await using client = new ApiClient({ baseUrl: url, token: () => token })
      const asked = client.request(method, `/v1/goals/${path}`, { schema: z.unknown(), ...(body && { body }) })
      return await asked.catch(({ code }: { code?: string }) => code)
    }
    const deploy = (name: string, to: object) => ask(name, 'POST', `${namespace}/web/deploy`, to)
    assert.is(await ask('grace', 'GET', namespace), 'Forbidden', 'of artifacts she may list none')
    const { goals, artifacts } = goalsAnswer.parse(await ask('ada', 'GET', namespace))
    const [shown] = goals
    assert.equal(
      [shown?.name, shown?.artifact, shown?.effective, shown?.healthy, shown?.reason],
      ['web', 'web-1', 'web-1', 8, 'RolledOut'],
    )
    assert.equal(artifacts, [{ name: 'web-2', deployable: false }])
    assert.is(await ask('ada', 'GET', 'elsewhere'), 'Forbidden')
    assert.is(await deploy('grace', { artifact: 'web-2' }), 'Forbidden')
    assert.is(await deploy('ada', { artifact: 'web-9' }), 'NotFound')
    assert.is(await deploy('ada', {}), 'Invalid')
    assert.is((await read(namespace))?.spec.artifactRef.name, 'web-1')
    assert.equal(await deploy('ada', { artifact: 'web-2' }), {})
    assert.is((await read(namespace))?.spec.artifactRef.name, 'web-2')
  } finally {
    await server.close()
  }
})

test('undo goes back from what was rolled out to what worked before, which machines still have', async () => {
  const namespace = await newNamespace()
  const ada = await person(namespace, 'ada', 'steers')
  for (const name of ['web-1', 'web-2']) await artifact(namespace, name)
  await apply(namespace, 'web-1')
  await rollOut(namespace, 'Ready', 'RolledOut')
  assert.match(await shoal(ada, 'undo', 'web', '--why', 'x'), /no other release of web has worked yet/)
  await apply(namespace, 'web-2')
  await rollOut(namespace, 'Ready', 'RolledOut')
  const payload = await until('what worked before is kept', async () => {
    const found = await told(namespace, 'eu')
    return found?.previous ? found : undefined
  })
  assert.is(payload.previous?.template.artifact.name, 'web-1')
  assert.match(await shoal(ada, 'undo', 'web', '--why', 'slow'), /goes back to web-1/)
  await rollOut(namespace, 'Stalled', 'Held')
  const { status, spec } = (await read(namespace)) ?? {}
  assert.equal([spec?.artifactRef.name, status?.effective?.artifact], ['web-2', 'web-1'])
  assert.is(status?.history?.find(({ revision }) => revision === 2)?.outcome, 'Undone')
  assert.match(
    status?.conditions?.find(({ type }) => type === 'Stalled')?.message ?? '',
    /held by .*ada: slow; gone back/,
  )
})

test('while a wave soaks its check is asked, by region; without an answer it waits, promoted it goes on, ill it goes back', async () => {
  const namespace = await newNamespace()
  const ada = await person(namespace, 'ada', 'steers')
  for (const name of ['web-1', 'web-2']) await artifact(namespace, name)
  const asked: URLSearchParams[] = []
  let answer: [status: number, body: string] = [503, '']
  const server = createServer((request, response) => {
    asked.push(new URL(request.url ?? '', 'http://check').searchParams)
    response.writeHead(answer[0]).end(answer[1])
  })
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  try {
    const { port } = server.address() as AddressInfo
    const rollout = (soak: string) => ({
      rollout: { check: { url: `http://127.0.0.1:${port}/?key=1` }, waves: [{ regions: ['*'], percent: 100, soak }] },
    })
    await apply(namespace, 'web-1', rollout('200ms'))
    await rollOut(namespace, 'Reconciling', 'CheckUnanswered')
    assert.match((await condition(namespace, 'Reconciling'))?.message ?? '', /has not answered: it answered 503/)
    answer = [200, '{"ok": true}']
    await rollOut(namespace, 'Ready', 'RolledOut')
    assert.equal(
      asked
        .map((each) => each.get('region'))
        .filter((each, at, all) => all.indexOf(each) === at)
        .sort(),
      regions,
    )
    const [first] = asked
    assert.equal(
      ['key', 'goal', 'artifact', 'wave', 'revision'].map((name) => first?.get(name)),
      ['1', 'web', 'web-1', '1', '1'],
    )
    await apply(namespace, 'web-2', rollout('1h'))
    await rollOut(namespace, 'Reconciling', 'Soaking')
    answer = [200, '{"ok": false, "message": "errors rise"}']
    await rollOut(namespace, 'Stalled', 'RolloutFailed')
    assert.match((await revision(namespace, 2)).status?.hold?.why ?? '', /errors rise/)
    answer = [200, '{"ok": true}']
    await shoal(ada, 'release', 'web')
    await rollOut(namespace, 'Reconciling', 'Soaking')
    assert.match(await shoal(ada, 'promote', 'web'), /does not soak after wave 1/)
    await rollOut(namespace, 'Ready', 'RolledOut')
  } finally {
    server.close()
    server.closeAllConnections()
  }
})

test('in a freeze nothing begins, and what failed still goes back; one that can’t be read stalls', async () => {
  const namespace = await newNamespace()
  for (const name of ['web-1', 'web-2']) await artifact(namespace, name)
  await apply(namespace, 'web-1')
  await rollOut(namespace, 'Ready', 'RolledOut')
  const waves = [{ regions: ['*'], percent: 100 }]
  const freeze = [{ cron: '* * * * *', duration: '1h', timeZone: 'Europe/Paris' }]
  await apply(namespace, 'web-2', { rollout: { waves, freeze } })
  await reason(namespace, 'Reconciling', 'Frozen')
  assert.equal((await told(namespace, 'eu'))?.target, { machines: 0, percent: 0 }, 'fetched, not activated')
  const goal = GoalState.parse(await cluster.get(GoalState, namespace, 'web'))
  await apply(namespace, 'web-2', { rollout: { waves } })
  await until('it began', async () => (await told(namespace, 'us'))?.target.percent === 100)
  await apply(namespace, 'web-2', { rollout: { waves, freeze } })
  await until('it is frozen on the way', async () => (await halted(namespace)).every(Boolean))
  for (const region of regions) await obey(namespace, region, 'web-2')
  await rollOut(namespace, 'Stalled', 'RolloutFailed', 'web-2')
  assert.is((await read(namespace))?.status?.effective?.artifact, 'web-1')
  assert.is(goal.metadata.name, 'web')
  await apply(namespace, 'web-2', { rollout: { waves, freeze: [{ ...freeze[0], timeZone: 'Mars/Olympus' }] } })
  await reason(namespace, 'Stalled', 'Invalid')
})

test('a goal that names a region there is not is not taken; one whose region has gone can still be changed', async () => {
  const namespace = await newNamespace()
  const to = (region: string, more = {}) =>
    apply(namespace, 'web-1', { rollout: { waves: [{ regions: ['eu', region], percent: 100 }], ...more } }).then(
      () => 'taken',
      (error: unknown) => (error as Error).message,
    )
  await until('it is refused', async () => /there is no region mars; there are: eu, us/.test(await to('mars')))
  await addRegion('mars', { cordoned: true })
  await until('it is taken', async () => (await to('mars')) === 'taken')
  await cluster.delete(Region, undefined, 'mars')
  await until('mars is unknown again', async () => /no region mars-2; there are: eu, us/.test(await to('mars-2')))
  assert.is(await to('mars', { maxUnavailable: 1 }), 'taken')
})

test.after(async () => {
  await parts.disposeAsync()
})
test.run()
