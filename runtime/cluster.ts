import { type HttpMethod, KubeConfig, RequestContext } from '@kubernetes/client-node'
import { type Dispatcher, request as send } from 'undici'
import { type ErrorCode, ShoalError } from '../api/errors.ts'
import { type Clock, systemClock } from './clock.ts'
import { apiVersionOf, type Resource } from './core.ts'
import { readLines } from './lines.ts'

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

interface RawOptions {
  body?: unknown
  contentType?: string
  impersonate?: string | undefined
  signal?: AbortSignal | undefined
  timeoutMs?: number
}

/** What the API server answered with an error. `reason` is its own word, as `AlreadyExists`. */
export class ApiError extends ShoalError {
  override readonly name = 'ApiError'
  readonly status: number
  readonly reason: string
  readonly retryAfterMs: number | undefined
  constructor(status: number, reason: string, message: string, retryAfterMs?: number) {
    super(codeOf(status), message)
    this.status = status
    this.reason = reason
    this.retryAfterMs = retryAfterMs
  }
}

const codes: Record<number, ErrorCode> = {
  401: 'Unauthorized',
  403: 'Forbidden',
  404: 'NotFound',
  409: 'Conflict',
  413: 'TooLarge',
  504: 'Timeout',
}
const codeOf = (status: number): ErrorCode =>
  codes[status] ?? (status === 429 || status >= 500 ? 'Unavailable' : 'Invalid')

/**
 * One API server. client-node brings addresses, credentials and certificates; requests are our own, as raw JSON, since
 * its typed calls drop `x-kubernetes-*` fields, and over one dispatcher, since its own makes one (and a TLS handshake)
 * for each request: 4.8 ms of CPU a call against 0.6.
 */
export class Cluster implements AsyncDisposable {
  readonly #config: KubeConfig
  readonly #clock: Clock
  #dispatcher: { value: Dispatcher | undefined; madeAt: number } | undefined
  readonly server: string
  /** Certificates in files rotate: the dispatcher is made anew so often. */
  static readonly dispatcherLifeMs = 600_000

  private constructor(config: KubeConfig, clock: Clock) {
    this.#config = config
    this.#clock = clock
    const cluster = config.getCurrentCluster()
    if (!cluster) throw new ShoalError('ConfigInvalid', 'the kubeconfig has no current cluster')
    this.server = cluster.server.replace(/\/$/, '')
  }

  /** By a kubeconfig's path, or from inside a pod. */
  static load(options: { kubeconfig?: string | undefined; clock?: Clock } = {}): Cluster {
    const config = new KubeConfig()
    if (options.kubeconfig === undefined) config.loadFromCluster()
    else config.loadFromFile(options.kubeconfig)
    return new Cluster(config, options.clock ?? systemClock)
  }

  /** The object, or undefined when there is none. */
  async get<T = AnyObject>(resource: Resource, namespace: string | undefined, name: string): Promise<T | undefined> {
    try {
      return await this.#retried<T>('GET', path(resource, namespace, name))
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
        const page = await this.#retried<{ items: T[]; metadata: { continue?: string; resourceVersion: string } }>(
          'GET',
          path(resource, selection.namespace) + query,
          { signal },
        )
        items.push(...page.items)
        continueToken = page.metadata.continue ?? ''
        if (continueToken === '') return { items, resourceVersion: page.metadata.resourceVersion }
      } catch (error) {
        if (!(error instanceof ApiError && error.status === 410)) throw error
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
    at: { namespace?: string | undefined; name: string; subresource?: 'status' },
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
    const body = await this.#send('GET', path(resource, selection.namespace) + query, { signal, timeoutMs: 0 })
    for await (const line of readLines(body)) yield JSON.parse(line) as WatchEvent
  }

  /** Any request, with the kubeconfig's credentials. Throws ApiError. */
  async raw<T>(method: string, pathAndQuery: string, options: RawOptions = {}): Promise<T> {
    const body = await this.#send(method, pathAndQuery, options)
    return (await body.json()) as T
  }

  /** A read, again while the server is busy or a new kind's storage is (re)initializing. */
  async #retried<T>(method: string, pathAndQuery: string, options: RawOptions = {}): Promise<T> {
    for (let attempt = 1; ; attempt++) {
      try {
        return await this.raw<T>(method, pathAndQuery, options)
      } catch (error) {
        if (!(error instanceof ApiError && error.status === 429) || attempt >= 30) throw error
        await this.#clock.sleep(error.retryAfterMs ?? 500 + Math.random() * 1000, options.signal)
      }
    }
  }

  async #send(method: string, pathAndQuery: string, options: RawOptions): Promise<Dispatcher.ResponseData['body']> {
    const context = new RequestContext(this.server + pathAndQuery, method as HttpMethod)
    await this.#config.applySecurityAuthentication(context)
    const timeoutMs = options.timeoutMs ?? 30_000
    const signals = [options.signal, timeoutMs > 0 ? AbortSignal.timeout(timeoutMs) : undefined].filter(
      (signal) => signal !== undefined,
    )
    const answer = await send(this.server + pathAndQuery, {
      method: method as Dispatcher.HttpMethod,
      dispatcher: this.#currentDispatcher(context),
      bodyTimeout: timeoutMs,
      headersTimeout: 30_000,
      headers: {
        ...context.getHeaders(),
        ...(options.body !== undefined && { 'content-type': options.contentType ?? 'application/json' }),
        ...(options.impersonate !== undefined && { 'impersonate-user': options.impersonate }),
      },
      ...(options.body !== undefined && { body: JSON.stringify(options.body) }),
      ...(signals.length > 0 && { signal: AbortSignal.any(signals) }),
    }).catch((error: unknown) => {
      options.signal?.throwIfAborted()
      throw new ShoalError('Unavailable', `API server: ${(error as Error).message}`, { cause: error })
    })
    if (answer.statusCode < 400) return answer.body
    const text = await answer.body.text()
    let status: { reason?: string; message?: string; code?: number } = {}
    try {
      status = JSON.parse(text) as typeof status
    } catch {
      // A proxy's page, or plain text.
    }
    const retryAfter = Number(answer.headers['retry-after'])
    throw new ApiError(
      answer.statusCode,
      status.reason ?? 'Unknown',
      status.message ?? text.slice(0, 300),
      retryAfter > 0 ? retryAfter * 1000 : undefined,
    )
  }

  #currentDispatcher(context: RequestContext): Dispatcher {
    const now = this.#clock.monotonic()
    if (!this.#dispatcher || now - this.#dispatcher.madeAt > Cluster.dispatcherLifeMs) {
      this.#dispatcher = { value: context.getDispatcher() as Dispatcher | undefined, madeAt: now }
    }
    return this.#dispatcher.value as Dispatcher
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#dispatcher?.value?.destroy()
  }
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
