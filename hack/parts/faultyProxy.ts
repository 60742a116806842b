import { once } from 'node:events'
import { writeFile } from 'node:fs/promises'
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http'
import { request } from 'node:https'
import type { AddressInfo } from 'node:net'
import { join } from 'node:path'
import type { ApiServer } from './apiServer.ts'
import { temporaryDir as makeDir, type temporaryDir } from './process.ts'

/** For tests: a proxy before a real API server, as its administrator, that can fail in the ways networks and servers do. */
export class FaultyProxy implements AsyncDisposable {
  readonly #api: ApiServer
  readonly #http: Server
  readonly #dir: Awaited<ReturnType<typeof temporaryDir>>
  readonly #watches = new Set<ServerResponse>()
  /** `GET /path?query` of each request. */
  readonly requests: string[] = []
  /** A status to answer a request with instead of asking the server; undefined lets it through. */
  refuse: (request: string) => { status: number; retryAfter?: number; body?: string } | undefined = () => undefined
  /** Nothing of what the server sends to watches arrives any more, and connections stay open. */
  silent = false
  /** New requests get no answer. */
  hang = false
  /** The most requests that were here together. */
  mostAtOnce = 0
  #atOnce = 0
  kubeconfigFile = ''

  private constructor(api: ApiServer, dir: Awaited<ReturnType<typeof temporaryDir>>) {
    this.#api = api
    this.#dir = dir
    this.#http = createServer((incoming, outgoing) => this.#pass(incoming, outgoing))
  }

  static async start(api: ApiServer): Promise<FaultyProxy> {
    const proxy = new FaultyProxy(api, await makeDir('shoal-proxy'))
    proxy.#http.listen(0, '127.0.0.1')
    await once(proxy.#http, 'listening')
    const { port } = proxy.#http.address() as AddressInfo
    proxy.kubeconfigFile = join(proxy.#dir.path, 'kubeconfig')
    const config = {
      apiVersion: 'v1',
      kind: 'Config',
      'current-context': 'c',
      contexts: [{ name: 'c', context: { cluster: 'c', user: 'u' } }],
      clusters: [{ name: 'c', cluster: { server: `http://127.0.0.1:${port}`, 'insecure-skip-tls-verify': true } }],
      users: [{ name: 'u', user: { token: api.token } }],
    }
    await writeFile(proxy.kubeconfigFile, JSON.stringify(config))
    return proxy
  }

  /** Watches that are open. */
  get watches(): number {
    return this.#watches.size
  }

  /** How many requests began with this text. */
  count(prefix: string): number {
    return this.requests.filter((line) => line.startsWith(prefix)).length
  }

  resetWatches(): void {
    for (const watch of this.#watches) watch.socket?.resetAndDestroy()
  }

  endWatches(): void {
    for (const watch of this.#watches) watch.end()
  }

  /** Sends a line to every watch as if the server had. */
  inject(line: string): void {
    for (const watch of this.#watches) watch.write(`${line}\n`)
  }

  #pass(incoming: IncomingMessage, outgoing: ServerResponse): void {
    const line = `${incoming.method} ${incoming.url}`
    this.requests.push(line)
    this.mostAtOnce = Math.max(this.mostAtOnce, ++this.#atOnce)
    outgoing.on('close', () => this.#atOnce--)
    if (this.hang) return
    const refusal = this.refuse(line)
    if (refusal) {
      const headers = { ...(refusal.retryAfter !== undefined && { 'retry-after': String(refusal.retryAfter) }) }
      outgoing.writeHead(refusal.status, headers).end(refusal.body ?? '')
      return
    }
    const watching = incoming.url?.includes('watch=true') === true
    const { method = 'GET', headers } = incoming
    const upstream = request(new URL(incoming.url ?? '/', this.#api.url), { method, headers, ca: this.#api.ca })
    upstream.on('response', (answer) => {
      outgoing.writeHead(answer.statusCode ?? 502, answer.headers).flushHeaders()
      if (watching) this.#watches.add(outgoing)
      answer.on('data', (chunk: Buffer) => {
        if (!(watching && this.silent)) outgoing.write(chunk)
      })
      answer.on('end', () => outgoing.end())
      answer.on('error', () => outgoing.destroy())
    })
    upstream.on('error', () => outgoing.destroy())
    outgoing.on('error', () => undefined)
    outgoing.on('close', () => {
      this.#watches.delete(outgoing)
      upstream.destroy()
    })
    incoming.pipe(upstream)
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#http.close()
    this.#http.closeAllConnections()
    await once(this.#http, 'close')
    await this.#dir[Symbol.asyncDispose]()
  }
}
