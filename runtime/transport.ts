import { readFileSync } from 'node:fs'
import { dirname, resolve } from 'node:path'
import { type Cluster as ClusterEntry, type HttpMethod, KubeConfig, RequestContext } from '@kubernetes/client-node'
import { Agent, type Dispatcher, request as send } from 'undici'
import { parse } from 'yaml'
import { z } from 'zod'
import { ShoalError, Transient } from '../api/errors.ts'
import { ApiError } from './apiError.ts'

export interface RawOptions {
  body?: unknown
  contentType?: string
  /** Act as this user, with its rights. */
  impersonate?: string | undefined
  signal?: AbortSignal | undefined
  /** For the whole answer; 0: without end. Default: 30 s. */
  timeoutMs?: number
}

type TlsOptions = Record<string, unknown>
type DispatcherOptions = { type: string; connect?: TlsOptions }

/**
 * Requests to one API server. client-node brings addresses, credentials and certificates, and reads the files among
 * them again by itself; the rest is ours. Its own requests make a dispatcher, and a TLS handshake, each: 4.8 ms of CPU
 * a call against 0.6 with one that is kept until a certificate changes.
 */
export class Transport implements AsyncDisposable {
  readonly #config: KubeConfig
  readonly #dispatchers: Dispatcher[] = []
  readonly server: string

  constructor(config: KubeConfig) {
    this.#config = config
    const cluster = config.getCurrentCluster()
    if (!cluster) throw new ShoalError('ConfigInvalid', 'the kubeconfig has no current cluster')
    this.server = cluster.server.replace(/\/$/, '')
    this.#keepDispatchers()
  }

  /** The same server, as whoever this token is; over connections of its own. */
  as(token: string): Transport {
    const cluster = this.#config.getCurrentCluster()
    const config = new KubeConfig()
    const name = 'caller'
    config.loadFromOptions({
      ...{ clusters: [cluster], users: [{ name, token }], currentContext: name },
      contexts: [{ name, cluster: cluster?.name, user: name }],
    })
    return new Transport(config)
  }

  /** The answer's body. Throws ApiError for what the server refuses, Transient when it does not answer. */
  async send(method: string, pathAndQuery: string, options: RawOptions): Promise<Dispatcher.ResponseData['body']> {
    const { body, impersonate, timeoutMs = 30_000 } = options
    const context = new RequestContext(this.server + pathAndQuery, method as HttpMethod)
    const timeout = timeoutMs > 0 ? [AbortSignal.timeout(Math.ceil(timeoutMs))] : []
    const signals = options.signal ? [options.signal, ...timeout] : timeout
    try {
      await this.#config.applySecurityAuthentication(context)
      const answer = await send(this.server + pathAndQuery, {
        method: method as Dispatcher.HttpMethod,
        dispatcher: context.getDispatcher() as Dispatcher,
        bodyTimeout: 0,
        headersTimeout: timeoutMs > 0 ? 0 : 30_000,
        headers: {
          'user-agent': 'shoal',
          ...context.getHeaders(),
          ...(body !== undefined && { 'content-type': options.contentType ?? 'application/json' }),
          ...(impersonate !== undefined && { 'impersonate-user': impersonate }),
        },
        ...(body !== undefined && { body: JSON.stringify(body) }),
        ...(signals.length > 0 && { signal: AbortSignal.any(signals) }),
      })
      if (answer.statusCode < 400) return answer.body
      throw ApiError.from(answer.statusCode, await answer.body.text(), answer.headers['retry-after'])
    } catch (error) {
      throw this.failure(error, options.signal)
    }
  }

  /** What an error on the way is to the caller. */
  failure(error: unknown, signal: AbortSignal | undefined): unknown {
    if (signal?.aborted) return signal.reason
    if (error instanceof ShoalError) return error
    const { name, message } = error as Error
    const code = name === 'TimeoutError' || name === 'HeadersTimeoutError' ? 'Timeout' : 'Unavailable'
    return new Transient(code, `API server ${this.server}: ${message}`, { cause: error })
  }

  /**
   * Puts a factory under client-node that makes a dispatcher only when the certificates are not those of the last one.
   * By HTTP/1.1: over HTTP/2 every watch and request would share one connection, and stall with it.
   */
  #keepDispatchers(): void {
    const config = this.#config
    const optionsOf = Reflect.get(config, 'createDispatcherOptions') as (c: unknown, o: TlsOptions) => DispatcherOptions
    const make = Reflect.get(config, 'createDispatcher') as (c: unknown, o: TlsOptions) => Dispatcher
    let fingerprint: string | undefined
    Reflect.set(config, 'createDispatcher', (cluster: ClusterEntry | null, tls: TlsOptions) => {
      const now = JSON.stringify(Object.values(tls).map(String))
      const current = this.#dispatchers.at(-1)
      if (current && fingerprint === now) return current
      const { type, connect } = optionsOf.call(config, cluster, tls)
      const direct = type === 'agent' || type === 'none'
      const next = direct ? new Agent({ allowH2: false, ...(connect && { connect }) }) : make.call(config, cluster, tls)
      fingerprint = now
      this.#dispatchers.push(next)
      // Its watches go on until they end.
      current?.close().then(
        () => this.#dispatchers.splice(this.#dispatchers.indexOf(current), 1),
        () => undefined,
      )
      return next
    })
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all(this.#dispatchers.map((dispatcher) => dispatcher.destroy()))
  }
}

const users = z.object({
  users: z.array(z.object({ name: z.string(), user: z.looseObject({ tokenFile: z.string().optional() }).nullish() })),
})

/** A kubeconfig, by its path, or that of the pod this runs in. Throws `ConfigInvalid`. */
export function loadKubeConfig(path: string | undefined): KubeConfig {
  const config = new KubeConfig()
  try {
    if (path === undefined) {
      config.loadFromCluster()
      return config
    }
    config.loadFromFile(path)
    // client-node knows tokenFile only as a pod's own; kubectl knows it for every user.
    for (const { name, user } of users.parse(parse(readFileSync(path, 'utf8'))).users) {
      if (user?.tokenFile === undefined) continue
      const tokenFile = resolve(dirname(path), user.tokenFile)
      config.users = config.users.map((known) =>
        known.name === name ? { ...known, authProvider: { name: 'tokenFile', config: { tokenFile } } } : known,
      )
    }
    return config
  } catch (error) {
    throw new ShoalError('ConfigInvalid', `kubeconfig ${path ?? 'of the pod'}: ${(error as Error).message}`, {
      cause: error,
    })
  }
}
