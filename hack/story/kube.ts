import { execFile } from 'node:child_process'
import { promisify } from 'node:util'
import type { Kind, ObjectOf } from '../../api/kind.ts'
import type { Condition } from '../../api/meta.ts'
import { Cluster } from '../../runtime/cluster.ts'
import { until } from '../parts/process.ts'
import type { Progress } from './progress.ts'
import type { SystemState } from './state.ts'

const run = promisify(execFile)

interface Place<K extends Kind> {
  kind: K
  namespace?: string
  name: string
}

interface Wait<K extends Kind> {
  what: string
  timeoutMs: number
  onChange?: (object: ObjectOf<K>) => void
  /** Why it will never be so, which ends the wait. */
  failed?: (object: ObjectOf<K>) => string | undefined
}

/** The demo's API server as a person sees it: `show` runs and prints kubectl, the rest reads for waiting. */
export class Kube implements AsyncDisposable {
  readonly cluster: Cluster
  readonly #state: SystemState
  readonly #progress: Progress

  constructor(state: SystemState, progress: Progress) {
    this.#state = state
    this.#progress = progress
    this.cluster = Cluster.load({ kubeconfig: state.kubeconfig })
  }

  get({ kind, namespace, name }: Place<Kind>) {
    return this.cluster.get(kind, namespace, name)
  }

  /** Waits until the object is there and as `test` wants it; throws what stood in the way otherwise. */
  async until<K extends Kind>(
    place: Place<K>,
    test: (object: ObjectOf<K>) => boolean,
    { what, timeoutMs, onChange, failed }: Wait<K>,
  ): Promise<ObjectOf<K>> {
    let last: ObjectOf<K> | undefined
    let failure: string | undefined
    const look = async () => {
      const raw = await this.get(place)
      if (raw === undefined) return
      const object = place.kind.parse(raw) as ObjectOf<K>
      if (object.metadata.resourceVersion !== last?.metadata.resourceVersion) onChange?.(object)
      last = object
      failure = failed?.(object)
      return failure !== undefined || test(object) ? object : undefined
    }
    const name = `${place.kind.kind} ${place.name}`
    try {
      const object = await until(what, look, { timeoutMs, intervalMs: 150 })
      if (failure === undefined) return object
    } catch (error) {
      const status = JSON.stringify(last?.status ?? 'not there')
      throw new Error(`${what}: not in time; ${name}: ${status}`, { cause: error })
    }
    throw new Error(`${what}: ${name}: ${failure}`)
  }

  /** Runs kubectl in the demo's namespace and prints the line to type and what it says. */
  async show(...args: string[]): Promise<void> {
    const { kubectl, kubeconfig, namespace } = this.#state
    this.#progress.line(`  $ kubectl ${args.join(' ')}`)
    const everywhere = args.includes('--all-namespaces') ? [] : ['--namespace', namespace]
    const { stdout } = await run(kubectl, ['--kubeconfig', kubeconfig, ...everywhere, ...args])
    for (const line of stdout.trimEnd().split('\n')) this.#progress.line(`    ${line.trimEnd()}`)
  }

  async [Symbol.asyncDispose]() {
    await this.cluster[Symbol.asyncDispose]()
  }
}

/** True when the object has this condition with status True, for the spec as it is now. */
export function isTrue(object: { metadata: { generation?: number | undefined }; status?: unknown }, type: string) {
  const { conditions = [], observedGeneration } = (object.status ?? {}) as {
    conditions?: Condition[]
    observedGeneration?: number
  }
  const { generation } = object.metadata
  const current = observedGeneration === undefined || generation === undefined || observedGeneration >= generation
  return current && conditions.some((it) => it.type === type && it.status === 'True')
}
