import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { parse } from 'yaml'
import { systemClock } from '../../runtime/clock.ts'
import { type AnyObject, Cluster } from '../../runtime/cluster.ts'
import { Controller } from '../../runtime/controller.ts'
import { core } from '../../runtime/core.ts'
import { createLogger } from '../../runtime/log.ts'
import { Metrics } from '../../runtime/metrics.ts'
import { Reflector } from '../../runtime/reflector.ts'
import { hubNamespace as namespace } from './access.ts'
import { allOf } from './parts.ts'

const root = join(import.meta.dirname, '../..')
const name = 'shoal-worker'
const costAnnotation = 'controller.kubernetes.io/pod-deletion-cost'

interface Deployment extends AnyObject {
  spec: { replicas: number; template: { metadata: { labels: Record<string, string> }; spec: object } }
}
interface Pod extends AnyObject {
  metadata: AnyObject['metadata'] & { annotations?: Record<string, string> }
  status?: { conditions?: { type: string; status: string }[] }
}

export interface WorkerPodsOptions {
  kubeconfig: string
  /** Bounds of the autoscaler; `min` run from the start. */
  workers: { min: number; max: number }
  /** Starts a process, named as its Pod; resolves when it is ready. */
  start: (pod: string) => Promise<void>
  /** Ends it, with SIGTERM first. */
  stop: (pod: string) => Promise<void>
}

/**
 * The workers' Deployment as local processes: what a ReplicaSet and the nodes do, where there are neither. Each process
 * has a Pod object of its name. A Pod that is deleted ends its process and is replaced; where there are too many, those
 * that are not ready go first, then the cheapest, then the youngest. A process that dies by itself stays dead, as on a
 * node that died with it: what the hub does about that is to be seen.
 */
export class WorkerPods implements AsyncDisposable {
  readonly #options: WorkerPodsOptions
  readonly #cluster: Cluster
  readonly #stop = new AbortController()
  /** When each process is ready, or could not be. */
  readonly #started = new Map<string, Promise<void>>()
  #count = 0
  #running: Promise<unknown> = Promise.resolve()
  #reported = ''

  constructor(options: WorkerPodsOptions) {
    this.#options = options
    this.#cluster = Cluster.load({ kubeconfig: options.kubeconfig })
  }

  /** Applies the Deployment and starts the first workers; from when they are ready on, follows what is written to it. */
  async begin(): Promise<void> {
    const { min } = this.#options.workers
    const deployment = await this.#deployment()
    for (const pod of await this.#pods()) await this.#cluster.delete(core.Pod, namespace, pod.metadata.name)
    await this.#cluster.apply(core.Deployment, deployment, { fieldManager: 'demo' })
    await allOf(Array.from({ length: min }, async () => (await this.#add(deployment)).ready))
    this.#follow()
  }

  /** As it is installed in a cluster, with the demo's bounds. */
  async #deployment(): Promise<Deployment> {
    const { min, max } = this.#options.workers
    const deployment: Deployment = parse(await readFile(join(root, 'manifests/hub/worker.yaml'), 'utf8'))
    const annotations = { 'shoal.dev/min-workers': String(min), 'shoal.dev/max-workers': String(max) }
    Object.assign(deployment.metadata, { namespace, annotations })
    // Where there are controllers and nodes after all, in a cluster that was given, the Pods are still ours alone.
    Object.assign(deployment.spec, { replicas: min, paused: true })
    Object.assign(deployment.spec.template.spec, { schedulerName: 'shoal-demo' })
    return deployment
  }

  #follow(): void {
    const { signal } = this.#stop
    const log = createLogger('worker-pods', 'silent')
    const parts = { log, metrics: new Metrics(), clock: systemClock }
    const controller = new Controller({ ...parts, name, reconcile: () => this.#reconcile(), concurrency: 1 })
    const reflectors = [
      { resource: core.Deployment, selection: { namespace, fieldSelector: `metadata.name=${name}` } },
      { resource: core.Pod, selection: { namespace, labelSelector: `app.kubernetes.io/name=${name}` } },
    ].map((what) => new Reflector({ ...parts, ...what, cluster: this.#cluster, parse: (it) => it as AnyObject }))
    for (const reflector of reflectors) reflector.onChange(() => controller.enqueue(name))
    this.#running = Promise.all([...reflectors.map((one) => one.run(signal)), controller.run(signal)])
  }

  async #reconcile(): Promise<undefined> {
    const deployment = await this.#cluster.get<Deployment>(core.Deployment, namespace, name)
    if (!deployment) return
    const pods = await this.#pods()
    const there = new Set(pods.map((pod) => pod.metadata.name))
    for (const pod of this.#started.keys()) if (!there.has(pod)) this.#end(pod)
    const { replicas } = deployment.spec
    const surplus = pods.sort(byCheapness).slice(0, Math.max(0, pods.length - replicas))
    for (const { metadata } of surplus) {
      await this.#cluster.delete(core.Pod, namespace, metadata.name)
      this.#end(metadata.name)
    }
    for (let missing = replicas - pods.length; missing > 0; missing--) await this.#add(deployment)
    await this.#report(deployment, pods)
  }

  async #pods(): Promise<Pod[]> {
    const labelSelector = `app.kubernetes.io/name=${name}`
    return (await this.#cluster.list<Pod>(core.Pod, { namespace, labelSelector })).items
  }

  /** Makes a Pod and its process, which may come up later. */
  async #add({ spec: { template } }: Deployment): Promise<{ ready: Promise<void> }> {
    const pod = `worker-${++this.#count}`
    const metadata = { name: pod, namespace, labels: template.metadata.labels }
    await this.#cluster.create(core.Pod, { metadata, spec: template.spec })
    const ready = this.#options.start(pod).then(async () => {
      const status = { phase: 'Running', conditions: [{ type: 'Ready', status: 'True' }] }
      await this.#cluster.patch(core.Pod, { namespace, name: pod, subresource: 'status' }, { status })
    })
    // Whoever starts the first ones waits for them; a later one that ends before it is ready has a Pod that is not.
    const settled = ready.catch(() => undefined)
    this.#started.set(pod, settled)
    return { ready }
  }

  /** One that is still starting ends as soon as it has started. */
  #end(pod: string): void {
    const started = this.#started.get(pod)
    this.#started.delete(pod)
    void started?.then(() => (this.#stop.signal.aborted ? undefined : this.#options.stop(pod)))
  }

  /** Written when it changed here, not when it differs: a controller that counts its own Pods would write it back. */
  async #report({ spec: { replicas }, metadata }: Deployment, pods: Pod[]): Promise<void> {
    const readyReplicas = pods.filter(isReady).length
    const counts = { replicas: pods.length, readyReplicas, availableReplicas: readyReplicas }
    const said = JSON.stringify([replicas, counts])
    if (said === this.#reported) return
    const status = { ...counts, updatedReplicas: pods.length, observedGeneration: metadata.generation }
    await this.#cluster.patch(core.Deployment, { namespace, name, subresource: 'status' }, { status })
    this.#reported = said
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#stop.abort()
    await this.#running
    // Whoever ends the processes knows only those that have started.
    await Promise.all(this.#started.values())
    await this.#cluster[Symbol.asyncDispose]()
  }
}

const isReady = ({ status }: Pod) =>
  status?.conditions?.some(({ type, status: is }) => type === 'Ready' && is === 'True') === true

/** Those that go first, first. */
function byCheapness(a: Pod, b: Pod): number {
  const cost = ({ metadata }: Pod) => Number(metadata.annotations?.[costAnnotation] ?? 0)
  const number = ({ metadata }: Pod) => Number(/[0-9]+$/.exec(metadata.name)?.[0])
  return Number(isReady(a)) - Number(isReady(b)) || cost(a) - cost(b) || number(b) - number(a)
}
