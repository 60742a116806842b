/** For tests: Deployments, Pods and workers on a real API server and database; nobody but the test acts on the Pods. */
import { join } from 'node:path'
import { startApiServer } from '../../hack/parts/apiServer.ts'
import { startDatabase } from '../../hack/parts/database.ts'
import { until } from '../../hack/parts/process.ts'
import { claim, hear } from '../../queue/claim.ts'
import { enqueue } from '../../queue/enqueue.ts'
import { Cluster } from '../../runtime/cluster.ts'
import { core } from '../../runtime/core.ts'
import { EventRecorder } from '../../runtime/events.ts'
import { createLogger } from '../../runtime/log.ts'
import { Database } from '../../runtime/sql.ts'
import { listDeployments, type WorkerDeployment } from './workerClass.ts'

export const namespace = 'shoal-test'
export const log = createLogger('test', process.env.SHOAL_TEST_LOG ?? 'silent')
export const parts = new AsyncDisposableStack()
const [api, server] = await Promise.all([startApiServer({ own: true }), startDatabase()])
for (const part of [api, server]) parts.use(part)
await api.createNamespace(namespace)

export { api }
export const cluster = parts.use(Cluster.load({ kubeconfig: api.kubeconfigFile }))
export const database = parts.use(new Database(await server.createSchema('builds')))
await database.migrate(join(import.meta.dirname, '../../queue/migrations'))
export const events = new EventRecorder({ cluster, component: 'test', log })

/** Forgets everything that an earlier test made. */
export async function clear(): Promise<void> {
  for (const table of ['pipeline', 'job', 'outcome', 'ready', 'blocked', 'slot', 'worker'])
    await database.execute(`DELETE FROM ${table}`)
  for (const resource of [core.Deployment, core.Pod])
    for (const { metadata } of (await cluster.list(resource, { namespace })).items)
      await cluster.delete(resource, namespace, metadata.name)
}

const template = (labels: Record<string, string>) => ({
  metadata: { labels },
  spec: { containers: [{ name: 'worker', image: 'shoal' }] },
})

/** A class's Deployment, of the class's name. */
export async function deploy(
  name: string,
  replicas: number,
  annotations: Record<string, string> = { 'shoal.dev/min-workers': '1', 'shoal.dev/max-workers': '10' },
): Promise<void> {
  await cluster.create(core.Deployment, {
    metadata: { name, namespace, labels: { 'shoal.dev/worker-class': name }, annotations },
    spec: { replicas, selector: { matchLabels: { app: name } }, template: template({ app: name }) },
  })
}

export async function deploymentOf(name: string): Promise<WorkerDeployment> {
  const found = (await listDeployments(cluster, namespace)).find(({ metadata }) => metadata.name === name)
  if (!found) throw new Error(`no Deployment ${name}`)
  return found
}
export const replicasOf = async (name: string) => (await deploymentOf(name)).spec.replicas

/** A Pod of a class, ready or not. */
export async function addPod(name: string, of: string, ready = true): Promise<void> {
  const { spec } = template({})
  await cluster.create(core.Pod, { metadata: { name, namespace, labels: { app: of } }, spec })
  await setReady(name, ready)
}

export async function setReady(name: string, ready: boolean): Promise<void> {
  const conditions = [{ type: 'Ready', status: ready ? 'True' : 'False' }]
  const status = { phase: 'Running', conditions }
  await cluster.patch(core.Pod, { namespace, name, subresource: 'status' }, { status })
}

/** What a Pod costs, `none` or that it is gone. */
export async function costOf(name: string): Promise<string> {
  const pod = await cluster.get<{ metadata: { annotations?: Record<string, string> } }>(core.Pod, namespace, name)
  return pod ? (pod.metadata.annotations?.['controller.kubernetes.io/pod-deletion-cost'] ?? 'none') : 'gone'
}

let polls = 0
/** A worker's name, as a worker in this Pod has it. */
export const workerIn = (pod: string, random = '0a1b2c3d') => `${pod}-17-${random}`
const claimerOf = (worker: string, size: string) => ({
  ...{ worker, pollId: ++polls, class: size, probeUrl: 'http://127.0.0.1:1', probeSecret: 's'.repeat(32) },
})
export const hears = (worker: string, size: string) => hear(database, [claimerOf(worker, size)])

let commits = 0
/** Queues a job. */
export async function push(): Promise<void> {
  const commit = (++commits).toString(16).padStart(40, '0')
  await enqueue(database, { namespace: 'demo', pipeline: 'web', commit, ref: 'refs/heads/main', maxJobs: 1000 })
}

/** Gives the worker a job; what the worker would finish. */
export async function makeBusy(worker: string, size: string): Promise<{ jobId: number; token: string }> {
  await push()
  const taken = await claim(database, claimerOf(worker, size))
  if (!taken) throw new Error(`${worker} got no job`)
  return { jobId: taken.job.id, token: taken.token }
}

/** Waits for an Event about a Deployment; its note. */
export function eventOf(deployment: string, reason: string, note = /./): Promise<string> {
  return until(`Event ${reason} on ${deployment}`, async () => {
    const selection = { namespace, fieldSelector: `regarding.name=${deployment},reason=${reason}` }
    const { items } = await cluster.list<{ note: string }>(core.Event, selection)
    return items.map((event) => event.note).find((text) => note.test(text))
  })
}
