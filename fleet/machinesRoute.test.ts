import { execFile } from 'node:child_process'
import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import type { MachineRecord } from '../api/machinesApi.ts'
import { mirrorNamespace } from '../api/regionApi.ts'
import { startApiServer } from '../hack/parts/apiServer.ts'
import { freePort, temporaryDir } from '../hack/parts/process.ts'
import { Cluster } from '../runtime/cluster.ts'
import { TokenReviewer } from '../runtime/identity.ts'
import { createLogger } from '../runtime/log.ts'
import { Metrics } from '../runtime/metrics.ts'
import { createServer, listen } from '../runtime/server.ts'
import { goal, machine, old, parts, region, report, say, startRegion, tls } from './fixture.ts'
import { registerMachinesRoute } from './machinesRoute.ts'

const test = suite('shoal machines')
const api = parts.use(await startApiServer())
const cluster = parts.use(Cluster.load({ kubeconfig: api.kubeconfigFile }))
const dir = parts.use(await temporaryDir('shoal-machines')).path
const { database, replicas } = await startRegion()
const server = createServer({ log: createLogger('test', 'silent'), metrics: new Metrics(), tls })
registerMachinesRoute(server, {
  ...{ cluster, tokens: new TokenReviewer(cluster, undefined), region, database, unreachableMs: 60_000 },
})
const { url } = await listen(server, { host: '127.0.0.1', port: await freePort() })
parts.defer(() => server.close())
const ca = join(dir, 'ca.crt')
await writeFile(ca, tls.authority)

const namespace = mirrorNamespace(region)
await api.createNamespace(namespace)
/** Who may see the machines of one goal. */
async function person(name: string, goals: string[]): Promise<string> {
  const token = await api.serviceAccountToken(namespace, name)
  const path = `/apis/rbac.authorization.k8s.io/v1/namespaces/${namespace}`
  const rule = { apiGroups: ['shoal.dev'], resources: ['regionalgoalstates'], resourceNames: goals, verbs: ['get'] }
  await api.request('POST', `${path}/roles`, { metadata: { name }, rules: [rule] })
  await api.request('POST', `${path}/rolebindings`, {
    metadata: { name },
    roleRef: { apiGroup: 'rbac.authorization.k8s.io', kind: 'Role', name },
    subjects: [{ kind: 'ServiceAccount', name, namespace }],
  })
  return api.kubeconfigFor(token, 'demo')
}
/** What it printed, of either kind. */
async function machines(kubeconfig: string, ...args: string[]): Promise<string> {
  const env = { ...process.env, KUBECONFIG: kubeconfig, SHOAL_REGION_URL: url, SHOAL_REGION_CA: ca, NO_COLOR: '1' }
  const main = join(import.meta.dirname, '../main.ts')
  return promisify(execFile)(process.execPath, [main, 'machines', ...args], { env }).then(
    ({ stdout, stderr }) => stdout + stderr,
    ({ stderr }: { stderr: string }) => stderr,
  )
}

const payload = goal(1)
const all = await Promise.all(Array.from({ length: 5 }, (_, n) => machine(database, `m${n}`)))
for (const m of all) await m.poll(replicas[0].url)
await say(replicas, payload)
await all[0]?.poll(replicas[0].url, [
  report(payload, { state: 'Healthy', running: payload.templateHash, fetchMs: 4200 }),
])
const failed = { state: 'RolledBack', running: old, reason: 'ActivationFailed', message: 'no health' } as const
await all[1]?.poll(replicas[0].url, [report(payload, failed)])
await database.execute("UPDATE machine SET last_seen_ms = last_seen_ms - 300000 WHERE name = 'm4'")
const ada = await person('ada', ['demo.web'])

test('each machine is shown with its state, and why it failed; pages follow each other', async () => {
  const shown = await machines(ada, 'web')
  assert.match(shown, /^NAME +STATE +REVISION/)
  assert.match(shown, /m0 +Healthy +1 +[0-9a-f]{16} +\ds +4s/)
  assert.match(shown, /m1 +RolledBack .* ActivationFailed +no health/)
  assert.match(shown, /m4 +Waiting \(silent\) .* 5m/)
  const names = async (...args: string[]) =>
    (JSON.parse(await machines(ada, 'web', '-o', 'json', ...args)) as MachineRecord[]).map(({ name }) => name)
  assert.equal(await names('--limit', '2'), ['m0', 'm1'])
  assert.equal(await names('--all'), ['m0', 'm1', 'm2', 'm3', 'm4'])
  assert.equal(await names('--state', 'RolledBack'), ['m1'])
  assert.equal(await names('--silent'), ['m4'])
  assert.match(await machines(ada, 'web', '--state', 'Failed'), /there are no such machines/)
})

test('pages of the API end where there is no more', async () => {
  const token = await api.serviceAccountToken(namespace, 'ada')
  const seen: string[] = []
  let next = ''
  for (let page = 0; page < 4; page++) {
    const answer = await server.inject({
      url: `/v1/machines?namespace=demo&goal=web&limit=2${next}`,
      headers: { authorization: `Bearer ${token}` },
    })
    const { items, continue: more } = answer.json<{ items: MachineRecord[]; continue?: string }>()
    seen.push(...items.map(({ name }) => name))
    if (more === undefined) break
    next = `&continue=${more}`
  }
  assert.equal(seen, ['m0', 'm1', 'm2', 'm3', 'm4'])
})

test('only who may get the goal’s RegionalGoalState there sees its machines; what is unknown is said', async () => {
  const eve = await person('eve', ['demo.other'])
  assert.match(await machines(eve, 'web'), /may not get regionalgoalstates.shoal.dev demo.web in namespace/)
  assert.match(await machines(eve, 'other'), /was never told of GoalState demo\/other/)
  assert.match(await machines(ada, 'web', '--limit', '0'), /want a number from 1 on/)
})

test.after(async () => {
  await parts.disposeAsync()
})
test.run()
