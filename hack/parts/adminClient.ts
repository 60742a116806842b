import { type HttpMethod, KubeConfig, RequestContext } from '@kubernetes/client-node'
import { Agent, type Dispatcher, fetch } from 'undici'

/** What an API server refuses: its HTTP status, and the reason of its Status object. */
export class ApiError extends Error {
  readonly code: number
  readonly reason: string

  constructor(code: number, reason: string, message: string) {
    super(message)
    this.code = code
    this.reason = reason
  }
}

/** JSON requests with a kubeconfig's current context, over one pool of connections. */
export class AdminClient implements AsyncDisposable {
  readonly kubeconfig = new KubeConfig()
  readonly url: string
  #dispatcher: Dispatcher | undefined

  constructor(kubeconfigFile: string) {
    this.kubeconfig.loadFromFile(kubeconfigFile)
    const cluster = this.kubeconfig.getCurrentCluster()
    if (!cluster) throw new Error(`${kubeconfigFile} names no current context`)
    this.url = cluster.server
  }

  /** @throws ApiError */
  async request(method: string, path: string, body?: unknown, contentType = 'application/json'): Promise<unknown> {
    const context = new RequestContext(this.url + path, method as HttpMethod)
    await this.kubeconfig.applySecurityAuthentication(context)
    // The client makes a dispatcher, so a TLS handshake, for each request; certificates of hours don't change within ours.
    this.#dispatcher ??= (context.getDispatcher() as Dispatcher | undefined) ?? new Agent()
    const answer = await fetch(this.url + path, {
      method,
      headers: { ...context.getHeaders(), ...(body === undefined ? {} : { 'content-type': contentType }) },
      ...(body === undefined ? {} : { body: JSON.stringify(body) }),
      dispatcher: this.#dispatcher,
      signal: AbortSignal.timeout(30_000),
    })
    const text = await answer.text()
    const json: unknown =
      text === '' || !/json/.test(answer.headers.get('content-type') ?? '') ? text : JSON.parse(text)
    if (answer.ok) return json
    const status = (typeof json === 'object' ? json : {}) as { reason?: string; message?: string }
    throw new ApiError(
      answer.status,
      status.reason ?? '',
      `${method} ${path}: ${status.message ?? `${answer.status} ${text}`}`,
    )
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#dispatcher?.destroy()
    this.#dispatcher = undefined
  }
}

/** A kubeconfig that trusts one authority and shows one token. */
export function kubeconfigText(o: { url: string; ca: string; token: string; namespace?: string | undefined }): string {
  const context = { cluster: 'shoal', user: 'shoal', ...(o.namespace === undefined ? {} : { namespace: o.namespace }) }
  // JSON is YAML.
  return JSON.stringify({
    apiVersion: 'v1',
    kind: 'Config',
    clusters: [
      {
        name: 'shoal',
        cluster: { server: o.url, 'certificate-authority-data': Buffer.from(o.ca).toString('base64') },
      },
    ],
    users: [{ name: 'shoal', user: { token: o.token } }],
    contexts: [{ name: 'shoal', context }],
    'current-context': 'shoal',
  })
}
