import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { workersAnswer } from '../../api/workersApi.ts'
import { drain } from '../../queue/workers.ts'
import { ApiClient } from '../../runtime/apiClient.ts'
import { core } from '../../runtime/core.ts'
import { TokenReviewer } from '../../runtime/identity.ts'
import { Metrics } from '../../runtime/metrics.ts'
import { createServer, listen } from '../../runtime/server.ts'
import * as on from './fixture.ts'
import { registerWorkersRoute } from './workersRoute.ts'

const test = suite('GET /v1/workers')
const { api, cluster, database, log, namespace } = on
const server = createServer({ log, metrics: new Metrics() })
const tokens = new TokenReviewer(cluster, undefined)
registerWorkersRoute(server, { cluster, database, tokens, namespace, alarmMs: 60_000 })
const { url } = await listen(server, { host: '127.0.0.1', port: 0 })
test.after(async () => {
  await server.close()
  await on.parts.disposeAsync()
})

async function askAs(account: string) {
  const token = await api.serviceAccountToken(namespace, account)
  await using client = new ApiClient({ baseUrl: url, token: () => token })
  return await client.request('GET', '/v1/workers', { schema: workersAnswer })
}

/** May see the workers, and no Pods. */
async function allow(account: string): Promise<void> {
  const rules = [{ apiGroups: ['shoal.dev'], resources: ['workers'], verbs: ['list'] }]
  await cluster.create(core.Role, { metadata: { name: account, namespace }, rules })
  await cluster.create(core.RoleBinding, {
    metadata: { name: account, namespace },
    roleRef: { apiGroup: 'rbac.authorization.k8s.io', kind: 'Role', name: account },
    subjects: [{ kind: 'ServiceAccount', name: account, namespace }],
  })
}

test('whoever may list workers.shoal.dev sees each worker, what it builds, and how full the queue is', async () => {
  await on.clear()
  await on.deploy('standard', 4)
  await on.makeBusy(on.workerIn('p1'), 'standard')
  for (const pod of ['p2', 'p3', 'p4']) await on.hears(on.workerIn(pod), 'standard')
  await drain(database, [on.workerIn('p3')])
  await database.execute('UPDATE worker SET last_seen_ms = last_seen_ms - 61000 WHERE name = ?', [on.workerIn('p4')])
  await on.push()
  await allow('operator')
  const { now, workers, queue } = await askAs('operator')
  assert.equal(
    workers.map(({ state }) => state),
    ['busy', 'idle', 'draining', 'silent'],
  )
  const [busy, idle] = workers
  assert.equal([busy?.name, busy?.class, busy?.job?.namespace], [on.workerIn('p1'), 'standard', 'demo'])
  assert.match(busy?.job?.name ?? '', /^web-0/)
  assert.ok(Date.parse(now) - Date.parse(busy?.job?.since ?? '') < 10_000)
  assert.is(idle?.job, undefined)
  const { oldestReadySeconds = -1, ...counts } = queue
  assert.equal(counts, { ready: 1, blocked: 0, running: 1, wanted: { standard: 4 } })
  assert.ok(oldestReadySeconds >= 0 && oldestReadySeconds < 10)
})

test('others don’t, and are told what they lack', async () => {
  const refusal = await askAs('nobody').catch((error: Error & { code?: string }) => error)
  assert.ok(refusal instanceof Error)
  assert.is('code' in refusal && refusal.code, 'Forbidden')
  assert.match(refusal.message, new RegExp(`may not list workers.shoal.dev in namespace ${namespace}`))
})

test.run()
