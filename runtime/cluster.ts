import { KubeConfig } from '@kubernetes/client-node'
import { Transient } from '../api/errors.ts'
import { ApiError } from './apiError.ts'
import { type Clock, systemClock } from './clock.ts'
import { apiVersionOf, type Resource } from './core.ts'
import { readLines } from './lines.ts'
import { Slots } from './slots.ts'
import { loadKubeConfig, type RawOptions, Transport } from './transport.ts'

export { ApiError }

/** Any object of the API. */
export interface AnyObject {
  apiVersion?: string
  kind?: string
  metadata: {
    name: string
    namespace?: string | undefined
    resourceVersion?: string | undefined
    [key: string]: unknown
  }
  [key: string]: unknown
}

export interface ObjectList<T> {
  items: T[]
  resourceVersion: string
}

export interface WatchEvent {
  type: 'ADDED' | 'MODIFIED' | 'DELETED' | 'BOOKMARK' | 'ERROR'
  object: AnyObject & { code?: number; message?: string }
}

export interface Selection {
  namespace?: string | undefined
  labelSelector?: string | undefined
  fieldSelector?: string | undefined
  /** Objects a page. */
  limit?: number | undefined
}

export interface ApplyOptions {
  fieldManager: string
  /** Take fields over from other managers. Default: true. */
  force?: boolean
  subresource?: 'status'
  dryRun?: boolean
  /** Act as this user, with its rights. */
  impersonate?: string
}

interface Limits {
  /** Each request's. Default: 30 s. */
  timeoutMs?: number
  signal?: AbortSignal
}

/** Requests at once; watches are not counted. */
const maxRequests = 32

/**
 * One API server: plain JSON in and out, since client-node's typed calls drop `x-kubernetes-*` fields. Reads are tried
 * again when the server is busy or away for a moment; writes never are, their callers know whether they may.
 */
export class Cluster implements AsyncDisposable {
  readonly #transport: Transport
  readonly #clock: Clock
  readonly #slots: Slots
  readonly #limits: Limits
  readonly server: string

  private constructor(transport: Transport, clock: Clock, slots: Slots, limits: Limits) {
    this.#transport = transport
    this.#clock = clock
    this.#slots = slots
    this.#limits = limits
    this.server = transport.server
  }

  /** By a kubeconfig or its path, or from inside a pod. Throws `ConfigInvalid`. */
  static load({
    kubeconfig,
    ...options
  }: {
    kubeconfig?: KubeConfig | string | undefined
    clock?: Clock
  } = {}): Cluster {
    const transport = new Transport(kubeconfig instanceof KubeConfig ? kubeconfig : loadKubeConfig(kubeconfig))
    return new Cluster(transport, options.clock ?? systemClock, new Slots(maxRequests), {})
  }

  /** The same API server over the same connections, with requests that end by these limits. */
  within(limits: Limits): Cluster {
    return new Cluster(this.#transport, this.#clock, this.#slots, limits)
  }

  /** The same API server, as whoever this token is; its own to dispose of. */
  as(token: string): Cluster {
    return new Cluster(this.#transport.as(token), this.#clock, new Slots(maxRequests), this.#limits)
  }

  /** The object, or undefined when there is none. */
  async get<T = AnyObject>(resource: Resource, namespace: string | undefined, name: string): Promise<T | undefined> {
    try {
      return await this.#read<T>(path(resource, namespace, name))
    } catch (error) {
      if (error instanceof ApiError && error.status === 404) return undefined
      throw error
    }
  }

  /** All objects, by pages of one snapshot; begun again when that snapshot expires. */
  async list<T = AnyObject>(
    resource: Resource,
    selection: Selection = {},
    signal?: AbortSignal,
  ): Promise<ObjectList<T>> {
    const items: T[] = []
    let continueToken = ''
    for (;;) {
      const query = selectionQuery(selection, {
        limit: String(selection.limit ?? 500),
        ...(continueToken && { continue: continueToken }),
      })
      try {
        const page = await this.#read<{ items: T[]; metadata: { continue?: string; resourceVersion: string } }>(
          path(resource, selection.namespace) + query,
          signal,
        )
        items.push(...page.items)
        continueToken = page.metadata.continue ?? ''
        if (continueToken === '') return { items, resourceVersion: page.metadata.resourceVersion }
      } catch (error) {
        // The snapshot the pages are of was compacted away.
        if (continueToken === '' || !(error instanceof ApiError && error.status === 410)) throw error
        items.length = 0
        continueToken = ''
      }
    }
  }

  create<T = AnyObject>(
    resource: Resource,
    object: Record<string, unknown> & {
      metadata?: { name?: string; namespace?: string | undefined; [key: string]: unknown }
    },
  ): Promise<T> {
    const body = { apiVersion: apiVersionOf(resource), kind: resource.kind, ...object }
    return this.raw<T>('POST', path(resource, object.metadata?.namespace), { body })
  }

  /** Server-side apply. A resourceVersion in the metadata makes it conditional. */
  apply<T = AnyObject>(
    resource: Resource,
    object: { metadata: { name: string; namespace?: string | undefined } },
    options: ApplyOptions,
  ): Promise<T> {
    const { fieldManager, force = true, subresource, dryRun, impersonate } = options
    const query = new URLSearchParams({ fieldManager, force: String(force), ...(dryRun && { dryRun: 'All' }) })
    const body = { apiVersion: apiVersionOf(resource), kind: resource.kind, ...object }
    const target = path(resource, object.metadata.namespace, object.metadata.name, subresource)
    return this.raw<T>('PATCH', `${target}?${query}`, {
      body,
      contentType: 'application/apply-patch+yaml',
      impersonate,
    })
  }

  patch<T = AnyObject>(
    resource: Resource,
    at: { namespace?: string | undefined; name: string; subresource?: 'status' | 'scale' },
    body: unknown,
    type: 'merge' | 'json' = 'merge',
  ): Promise<T> {
    const contentType = type === 'merge' ? 'application/merge-patch+json' : 'application/json-patch+json'
    return this.raw<T>('PATCH', path(resource, at.namespace, at.name, at.subresource), { body, contentType })
  }

  /** Replaces an object; 409 when its resourceVersion is not the latest. */
  replace<T = AnyObject>(resource: Resource, object: AnyObject, subresource?: 'status'): Promise<T> {
    return this.raw<T>('PUT', path(resource, object.metadata.namespace, object.metadata.name, subresource), {
      body: object,
    })
  }

  /** Deletes it, if it is there and as the preconditions say. */
  async delete(
    resource: Resource,
    namespace: string | undefined,
    name: string,
    preconditions?: { uid?: string; resourceVersion?: string },
  ): Promise<void> {
    try {
      await this.raw('DELETE', path(resource, namespace, name), {
        body: { apiVersion: 'v1', kind: 'DeleteOptions', ...(preconditions && { preconditions }) },
      })
    } catch (error) {
      if (!(error instanceof ApiError && error.status === 404)) throw error
    }
  }

  /** Events since `resourceVersion`; ends when the server ends it. Throws on a broken connection. */
  async *watch(
    resource: Resource,
    selection: Selection & { resourceVersion: string; timeoutSeconds: number },
    signal: AbortSignal,
  ): AsyncGenerator<WatchEvent> {
    const query = selectionQuery(selection, {
      watch: 'true',
      allowWatchBookmarks: 'true',
      resourceVersion: selection.resourceVersion,
      timeoutSeconds: String(selection.timeoutSeconds),
    })
    try {
      const target = path(resource, selection.namespace) + query
      const body = await this.#transport.send('GET', target, { signal, timeoutMs: 0 })
      for await (const line of readLines(body)) yield JSON.parse(line) as WatchEvent
    } catch (error) {
      throw this.#transport.failure(error, signal)
    }
  }

  /** Any request, with the kubeconfig's credentials. Throws ApiError, or Transient when there is no answer. */
  raw<T>(method: string, pathAndQuery: string, own: RawOptions = {}): Promise<T> {
    const options = { ...this.#limits, ...own, signal: own.signal ?? this.#limits.signal }
    return this.#slots.run(async () => {
      options.signal?.throwIfAborted()
      const body = await this.#transport.send(method, pathAndQuery, options)
      try {
        return (await body.json()) as T
      } catch (error) {
        throw this.#transport.failure(error, options.signal)
      }
    })
  }

  /** A read, again while the server is busy, away for a moment, or a new kind's storage is (re)initializing. */
  async #read<T>(pathAndQuery: string, signal?: AbortSignal): Promise<T> {
    for (let attempt = 1; ; attempt++) {
      try {
        return await this.raw<T>('GET', pathAndQuery, { signal })
      } catch (error) {
        if (signal?.aborted || attempt >= attemptsFor(error)) throw error
        const askedMs = error instanceof ApiError ? error.retryAfterMs : undefined
        await this.#clock.sleep(askedMs ?? 100 * 2 ** Math.min(attempt, 4) * (0.5 + Math.random()), signal)
      }
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#transport[Symbol.asyncDispose]()
  }
}

/** A busy server says so for as long as half a minute while a new kind's storage is made; one that is away, only once. */
function attemptsFor(error: unknown): number {
  if (error instanceof ApiError) return error.status === 429 ? 30 : error.status === 500 || error.status === 503 ? 3 : 1
  return error instanceof Transient && error.code === 'Unavailable' ? 3 : 1
}

function path(resource: Resource, namespace: string | undefined, name?: string, subresource?: string): string {
  const root = resource.group === '' ? `/api/${resource.version}` : `/apis/${resource.group}/${resource.version}`
  const scope = resource.namespaced && namespace !== undefined ? `/namespaces/${encodeURIComponent(namespace)}` : ''
  const object =
    name === undefined ? '' : `/${encodeURIComponent(name)}${subresource === undefined ? '' : `/${subresource}`}`
  return `${root}${scope}/${resource.plural}${object}`
}

function selectionQuery({ labelSelector, fieldSelector }: Selection, more: Record<string, string>): string {
  return `?${new URLSearchParams({ ...(labelSelector && { labelSelector }), ...(fieldSelector && { fieldSelector }), ...more })}`
}
