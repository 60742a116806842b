import { z } from 'zod'
import { objectMeta } from '../../api/meta.ts'
import { type KnownWorker, stateOf } from '../../queue/workers.ts'
import { ApiError, type Cluster } from '../../runtime/cluster.ts'
import { core } from '../../runtime/core.ts'
import type { WorkerDeployment } from './workerClass.ts'

const pod = z.looseObject({
  metadata: objectMeta,
  status: z
    .looseObject({
      phase: z.string().optional(),
      conditions: z.array(z.looseObject({ type: z.string(), status: z.string() })).default([]),
    })
    .optional(),
})

/** A Pod of a class, and the worker in it: the latest, where its container was restarted. */
export interface WorkerPod {
  name: string
  uid: string | undefined
  ready: boolean
  /** Its deletion has begun: the ReplicaSet has replaced it already, or doesn't want it any more. */
  deleting: boolean
  deletionCost: string | undefined
  worker: KnownWorker | undefined
}

/** A ReplicaSet, when it has too many, takes Pods of low cost first; among those that are ready. */
const costAnnotation = 'controller.kubernetes.io/pod-deletion-cost'
const costOf = { draining: '-1000', busy: '1000' } as const

/** The Pods of a Deployment but those that have ended. */
export async function podsOf(
  cluster: Cluster,
  { metadata, spec }: WorkerDeployment,
  workers: KnownWorker[],
): Promise<WorkerPod[]> {
  const labels = Object.entries(spec.selector.matchLabels).map(([name, value]) => `${name}=${value}`)
  const selection = { namespace: metadata.namespace, labelSelector: labels.join(',') }
  const { items } = await cluster.list(core.Pod, selection)
  const latest = new Map<string, KnownWorker>()
  for (const worker of workers) {
    const host = podNameOf(worker.name)
    if ((latest.get(host)?.firstSeenMs ?? 0) <= worker.firstSeenMs) latest.set(host, worker)
  }
  return items
    .map((item) => pod.parse(item))
    .filter(({ status }) => status?.phase !== 'Succeeded' && status?.phase !== 'Failed')
    .map(({ metadata: its, status }) => ({
      name: its.name,
      uid: its.uid,
      ready: status?.conditions.some(({ type, status: is }) => type === 'Ready' && is === 'True') === true,
      deleting: its.deletionTimestamp !== undefined,
      deletionCost: its.annotations?.[costAnnotation],
      worker: latest.get(its.name),
    }))
}

/** A worker is named `<pod>-<process id>-<random>` (worker/worker.ts). */
export const podNameOf = (worker: string): string => worker.replace(/-[0-9]+-[0-9a-f]{8}$/, '')

/**
 * Says which Pods to take first: `going`, then those that are idle, last those that build. Called when some are to go or
 * to stay after all, not at each build: each change is a write.
 */
export async function setDeletionCosts(
  cluster: Cluster,
  namespace: string | undefined,
  { pods, going, alarmMs }: { pods: WorkerPod[]; going: WorkerPod[]; alarmMs: number },
): Promise<void> {
  const leaving = new Set(going)
  const writes = pods.map(async (one) => {
    const isBusy = one.worker !== undefined && stateOf(one.worker, alarmMs) === 'busy'
    const cost = leaving.has(one) ? costOf.draining : isBusy ? costOf.busy : undefined
    if (cost === one.deletionCost) return
    const annotations = { [costAnnotation]: cost ?? null }
    await cluster
      .patch(core.Pod, { namespace, name: one.name }, { metadata: { annotations } })
      .catch((error: unknown) => {
        // It is gone already, which is as good.
        if (!(error instanceof ApiError && error.status === 404)) throw error
      })
  })
  await Promise.all(writes)
}

/**
 * Up to `count` Pods that may go, as the ReplicaSet would take them: those that are not ready first, since it asks for
 * no cost there; then idle ones, those drained before first, then the youngest. None when one that builds is not ready:
 * it would be the first to be taken.
 */
export function chooseToGo(pods: WorkerPod[], count: number, alarmMs: number): WorkerPod[] {
  const state = ({ worker }: WorkerPod) => worker && stateOf(worker, alarmMs)
  const starting = pods.filter(({ ready }) => !ready)
  if (starting.some((one) => state(one) === 'busy')) return []
  const order = (one: WorkerPod) => (state(one) === 'draining' ? 0 : 1)
  const since = ({ worker }: WorkerPod) => worker?.firstSeenMs ?? 0
  const idle = pods
    .filter((one) => one.ready && one.worker && state(one) !== 'busy')
    .sort((a, b) => order(a) - order(b) || since(b) - since(a))
  return [...starting, ...idle].slice(0, Math.max(0, count))
}
