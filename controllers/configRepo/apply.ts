import { ShoalError, Stalled } from '../../api/errors.ts'
import { ApiError, type Cluster } from '../../runtime/cluster.ts'
import type { Resource } from '../../runtime/core.ts'
import type { Manifest, PlacedManifest } from './manifests.ts'

export interface ApplyTarget {
  namespace: string
  /** Whose rights count; the hub itself may only impersonate. */
  serviceAccountName: string
  fieldManager: string
}

interface Resolved extends PlacedManifest {
  resource: Resource
}

/**
 * Applies all objects or none: first each as a dry run on the server (admission, validation, rights), then in earnest.
 * Throws Stalled `ConfigRepoInvalid` naming file and line of the first object the API server refuses.
 */
export async function applyAll(cluster: Cluster, placed: PlacedManifest[], target: ApplyTarget): Promise<void> {
  const resources = new Resources(cluster)
  const resolved: Resolved[] = []
  for (const { manifest, place } of placed) {
    const resource = await resources.of(manifest)
    if (resource === undefined) throw invalid(place, `${manifest.apiVersion} has no kind ${manifest.kind}`)
    if (!resource.namespaced)
      throw invalid(place, `${manifest.kind} belongs to no namespace; only objects in ${target.namespace} are applied`)
    resolved.push({ manifest, place, resource })
  }
  for (const dryRun of [true, false]) {
    for (const { manifest, place, resource } of resolved) {
      try {
        await cluster.apply(resource, manifest, { ...optionsFor(target), dryRun })
      } catch (error) {
        throw refused(error, manifest, place)
      }
    }
  }
}

const userOf = (target: ApplyTarget) => `system:serviceaccount:${target.namespace}:${target.serviceAccountName}`
const optionsFor = (target: ApplyTarget) => ({ fieldManager: target.fieldManager, impersonate: userOf(target) })

function refused(error: unknown, { kind, metadata }: Manifest, place: string): unknown {
  if (!(error instanceof ApiError)) return error
  if (error.status >= 500 || error.status === 429 || error.status === 409) return error
  return new Stalled('ConfigRepoInvalid', `${place}: ${kind}/${metadata.name}: ${error.message}`, { cause: error })
}

const invalid = (place: string, message: string) => new Stalled('ConfigRepoInvalid', `${place}: ${message}`)

interface ApiResources {
  resources: { name: string; kind: string; namespaced: boolean }[]
}

/** What the API server serves, asked once per group and version. */
class Resources {
  readonly #cluster: Cluster
  readonly #lists = new Map<string, Promise<ApiResources | undefined>>()

  constructor(cluster: Cluster) {
    this.#cluster = cluster
  }

  async of({ apiVersion, kind }: Manifest): Promise<Resource | undefined> {
    const [first = '', second] = apiVersion.split('/')
    const [group, version] = second === undefined ? ['', first] : [first, second]
    const list = this.#lists.get(apiVersion) ?? this.#ask(group === '' ? `/api/${version}` : `/apis/${apiVersion}`)
    this.#lists.set(apiVersion, list)
    const found = (await list)?.resources.find((it) => it.kind === kind && !it.name.includes('/'))
    return found && { group, version, kind, plural: found.name, namespaced: found.namespaced }
  }

  async #ask(path: string): Promise<ApiResources | undefined> {
    try {
      return await this.#cluster.raw<ApiResources>('GET', path)
    } catch (error) {
      if (error instanceof ShoalError && error.code === 'NotFound') return undefined
      throw error
    }
  }
}
