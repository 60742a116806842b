import { setTimeout as delay } from 'node:timers/promises'
import { ShoalError } from '../api/errors.ts'
import { type ReplicaReport, type ReplicaWork, type WorkAnswer, workAnswer } from '../api/regionApi.ts'
import type { ApiClient } from '../runtime/apiClient.ts'
import { checkReplica } from './check.ts'
import { retry } from './parallel.ts'
import { replicate } from './replicate.ts'
import { Store } from './store.ts'
import { sweepUploads } from './sweep.ts'

/** The hub, as a region's replicator sees it (api/regionApi.ts). */
export interface ReplicatorHub {
  work(signal: AbortSignal): Promise<WorkAnswer>
  report(replicas: ReplicaReport[], signal: AbortSignal): Promise<void>
}

/** The hub over HTTP; the client brings the region's token. */
export const regionHub = (client: ApiClient): ReplicatorHub => ({
  work: (signal) => client.request('GET', '/v1/region/work', { schema: workAnswer, signal }),
  report: async (replicas, signal) => {
    await client.request('POST', '/v1/region/replicas', { body: { replicas }, signal })
  },
})

export interface ReplicatorOptions {
  hub: ReplicatorHub
  /** Of the region's own bucket; where it is, the hub's Region says. */
  credentials: { accessKeyId: string; secretAccessKey: string }
  log: {
    debug(fields: object, message: string): void
    info(fields: object, message: string): void
    error(fields: object, message: string): void
  }
  signal: AbortSignal
  /** The bucket, as soon as it is known and whenever it changes. */
  onStore?: (store: Store) => void
  /** Tasks at once. Default 2; a copy holds four parts of 16 MiB in memory. */
  concurrency?: number
  /** Between two reports of how far a task is. Default 1 s. */
  progressMs?: number
}

const HUB_RETRY_MS = 1000
/** As api/regionApi.ts takes it. */
const MAX_MESSAGE = 1024
const SWEEP_EVERY_MS = 3_600_000

/**
 * A region's replicator: asks the hub what to do about its own bucket, does it, and says how it went, until `signal`.
 * It keeps no state: what it was doing when it died is given out again, and goes on from the parts that are there.
 */
export async function runReplicator(options: ReplicatorOptions): Promise<void> {
  const { hub, log, signal } = options
  const running = new Map<string, Promise<void>>()
  let store: Store | undefined
  let sweepAtMs = 0
  try {
    while (!signal.aborted) {
      let pollAfterMs = HUB_RETRY_MS
      try {
        const answer = await hub.work(signal)
        pollAfterMs = answer.pollAfterMs
        store = openStore(store, answer, options)
        if (performance.now() >= sweepAtMs) {
          sweepAtMs = performance.now() + SWEEP_EVERY_MS
          sweep(store, log)
        }
        const waiting = answer.work.filter((work) => !running.has(idOf(work)))
        await take(waiting, running, { ...options, store })
      } catch (error) {
        if (!signal.aborted) log.error({ err: error }, 'asking the hub for replication work failed')
      }
      await delay(pollAfterMs, undefined, { signal }).catch(() => {})
    }
  } finally {
    await Promise.allSettled(running.values())
    store?.[Symbol.dispose]()
  }
}

function sweep(store: Store, log: ReplicatorOptions['log']): void {
  sweepUploads(store, Date.now()).then(
    (count) => count > 0 && log.info({ count }, 'stale uploads aborted'),
    (error) => log.debug({ err: error }, 'looking for stale uploads failed'),
  )
}

const idOf = (work: ReplicaWork) => `${work.namespace}/${work.name}`

function openStore(current: Store | undefined, answer: WorkAnswer, options: ReplicatorOptions): Store {
  const { endpoint, bucket } = answer.region.spec.store
  if (current?.endpoint === endpoint && current.bucket === bucket) return current
  const store = new Store({ endpoint, bucket, ...options.credentials })
  options.onStore?.(store)
  return store
}

type TaskOptions = ReplicatorOptions & { store: Store }

/** Starts tasks as places get free. Once all are running it returns, so that new work is seen while they run. */
async function take(waiting: ReplicaWork[], running: Map<string, Promise<void>>, options: TaskOptions): Promise<void> {
  for (const work of waiting) {
    while (running.size >= (options.concurrency ?? 2)) await Promise.race(running.values())
    if (options.signal.aborted) return
    const id = idOf(work)
    running.set(
      id,
      runTask(work, options).finally(() => running.delete(id)),
    )
  }
}

async function runTask(work: ReplicaWork, options: TaskOptions): Promise<void> {
  const { hub, log, signal } = options
  const artifact = { namespace: work.namespace, name: work.name }
  const fields = { ...artifact, task: work.task }
  let bytes = 0
  let lastReport: Promise<void> = Promise.resolve()
  const progress = setInterval(() => {
    const state = work.task === 'Copy' ? 'Copying' : work.state
    const report: ReplicaReport = { ...artifact, state, copiedBytes: bytes, allBytesRead: false, inProgress: true }
    lastReport = hub
      .report([report], signal)
      .catch((error) => log.debug({ ...fields, err: error }, 'reporting progress failed'))
  }, options.progressMs ?? 1000)
  try {
    const outcome = await perform(work, { ...options, onBytes: (total) => (bytes = total) })
    clearInterval(progress)
    // progress that arrives after the outcome would hide it
    await lastReport
    const message = outcome.message?.slice(0, MAX_MESSAGE)
    const final = { ...artifact, ...outcome, inProgress: false, message }
    await retry(5, signal, () => hub.report([final], signal))
    if (outcome.state === 'Replicated') log.debug(fields, 'replica is whole')
    else log.info({ ...fields, state: outcome.state, reason: outcome.message }, 'replica is not whole')
  } catch (error) {
    // whatever it was, the lease ends and the hub gives the task out again
    if (!signal.aborted) log.error({ ...fields, err: error }, 'replication task failed')
  } finally {
    clearInterval(progress)
  }
}

type Outcome = Pick<ReplicaReport, 'state' | 'copiedBytes' | 'allBytesRead' | 'message'>

async function perform(
  work: ReplicaWork,
  options: TaskOptions & { onBytes: (bytes: number) => void },
): Promise<Outcome> {
  const { store, signal, onBytes } = options
  if (work.task !== 'Copy') {
    const outcome = await checkReplica(store, work, { allBytes: work.task === 'CheckAllBytes', signal })
    return outcome.state === 'Replicated' ? { ...outcome, copiedBytes: work.sizeBytes } : outcome
  }
  if (!work.source) return notCopied('No bucket has it to copy from.')
  try {
    const replace = work.state === 'Corrupt'
    const outcome = await replicate(store, work, work.source, { signal, onBytes, replace })
    return { ...outcome, copiedBytes: work.sizeBytes }
  } catch (error) {
    signal.throwIfAborted()
    if (!(error instanceof ShoalError)) throw error
    if (error.code === 'StoreUnreachable') return { state: 'Unknown', allBytesRead: false, message: error.message }
    return notCopied(error.message)
  }
}

const notCopied = (message: string): Outcome => ({ state: 'Pending', allBytesRead: false, message })
