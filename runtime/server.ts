import { readFileSync, statSync } from 'node:fs'
import type { AddressInfo } from 'node:net'
import Fastify, { type FastifyInstance } from 'fastify'
import { ZodError } from 'zod'
import { errorCodes, ShoalError, Waiting } from '../api/errors.ts'
import type { Logger } from './log.ts'
import type { Metrics } from './metrics.ts'

export type Server = FastifyInstance

interface TlsFiles {
  certFile: string
  keyFile: string
  /** How often they are looked at. Default: 30 s. */
  checkMs?: number
  /** Key exchanges, as OpenSSL names them. Default: OpenSSL's. */
  groups?: string
}

export interface ServerOptions {
  log: Logger
  metrics: Metrics
  /** Files of the certificate and its key; read again when they change. Without them: plain HTTP. */
  tls?: TlsFiles | undefined
  /** Default: 1 MiB. */
  bodyLimitBytes?: number
  /** What is in flight may take so long once the server is being closed. Default: 10 s. */
  closeMs?: number
  /** Why this process is not ready yet; empty when it is. */
  ready?: () => string[] | Promise<string[]>
}

/** An HTTP(S) server with /healthz, /readyz and /metrics; a ShoalError becomes `{code, message}` with its status. */
export function createServer(options: ServerOptions): Server {
  const { log, tls, metrics } = options
  const server = Fastify({
    logger: false,
    bodyLimit: options.bodyLimitBytes ?? 1 << 20,
    forceCloseConnections: 'idle',
    // Every body goes through a schema, which takes only what it knows.
    ...{ onProtoPoisoning: 'ignore', onConstructorPoisoning: 'ignore' },
    // A client that sends its request byte by byte holds a connection no longer than this.
    requestTimeout: 120_000,
    ...(tls && { https: credentials(tls) }),
  }) as unknown as Server
  if (tls) reloadOnChange(server, tls, log)
  closeInTime(server, options.closeMs ?? 10_000)
  server.get('/healthz', () => 'ok\n')
  server.get('/readyz', async (_request, reply) => {
    const reasons = await reasonsNotReady(options)
    return reasons.length === 0 ? 'ok\n' : reply.code(503).send(`${reasons.join('\n')}\n`)
  })
  server.get('/metrics', async (_request, reply) =>
    reply.type(metrics.registry.contentType).send(await metrics.registry.metrics()),
  )
  const durations = metrics.histogram('http_request_duration_seconds', 'Time of an HTTP request.', ['route', 'status'])
  server.addHook('onResponse', async (request, reply) => {
    const route = request.routeOptions.url ?? 'none'
    durations.observe({ route, status: String(reply.statusCode) }, reply.elapsedTime / 1000)
  })
  server.setNotFoundHandler((_request, reply) => reply.code(404).send({ code: 'NotFound', message: 'no such path' }))
  server.setErrorHandler((error, request, reply) => {
    const known = asShoalError(error)
    const fields = { err: error, method: request.method, route: request.routeOptions.url }
    if (known.code === 'Internal') log.error(fields, 'request failed')
    else log.debug(fields, 'request refused')
    if (known instanceof Waiting) reply.header('retry-after', Math.ceil(known.afterMs / 1000))
    return reply.code(errorCodes[known.code].status).send({ code: known.code, message: known.message })
  })
  return server
}

async function reasonsNotReady({ ready, log }: ServerOptions): Promise<string[]> {
  try {
    return (await ready?.()) ?? []
  } catch (error) {
    log.error({ err: error }, 'readiness not known')
    return ['readiness not known']
  }
}

/** Requests in flight are answered, but not for longer than this; idle connections are closed at once. */
function closeInTime(server: Server, closeMs: number): void {
  let timer: NodeJS.Timeout | undefined
  server.addHook('preClose', async () => {
    timer = setTimeout(() => server.server.closeAllConnections(), closeMs).unref()
  })
  server.addHook('onClose', async () => clearTimeout(timer))
}

function asShoalError(error: unknown): ShoalError {
  if (error instanceof ShoalError) return error
  if (error instanceof ZodError) {
    const [issue] = error.issues
    return new ShoalError('Invalid', `${issue?.path.join('.') || 'body'}: ${issue?.message}`)
  }
  const { statusCode, message } = error as { statusCode?: number; message?: string }
  if (statusCode === 413) return new ShoalError('TooLarge', 'the body is too large')
  if (statusCode !== undefined && statusCode < 500) return new ShoalError('Invalid', message ?? 'bad request')
  return new ShoalError('Internal', 'internal error')
}

const credentials = (tls: TlsFiles) => ({
  ...(tls.groups !== undefined && { ecdhCurve: tls.groups }),
  cert: readFileSync(tls.certFile),
  key: readFileSync(tls.keyFile),
})

/** Kubernetes replaces mounted Secrets in place; the certificate in use follows. */
function reloadOnChange(server: Server, tls: TlsFiles, log: Logger): void {
  let modifiedMs = statSync(tls.certFile).mtimeMs
  const timer = setInterval(() => {
    try {
      const now = statSync(tls.certFile).mtimeMs
      if (now === modifiedMs) return
      ;(server.server as unknown as { setSecureContext(o: object): void }).setSecureContext(credentials(tls))
      modifiedMs = now
      log.info('certificate reloaded')
    } catch (error) {
      log.error({ err: error }, 'certificate not reloaded')
    }
  }, tls.checkMs ?? 30_000).unref()
  server.addHook('onClose', () => clearInterval(timer))
}

/** Listens, and says where: port 0 takes a free one. */
export async function listen(
  server: Server,
  address: { host: string; port: number },
): Promise<{ url: string; port: number }> {
  const url = await server.listen(address)
  return { url, port: (server.server.address() as AddressInfo).port }
}

/** The bearer token of a request. Throws `Unauthorized`. */
export function bearerToken(headers: { authorization?: string | undefined }): string {
  const [, token] = /^Bearer ([\x21-\x7e]{1,16384})$/.exec(headers.authorization ?? '') ?? []
  if (token === undefined) throw new ShoalError('Unauthorized', 'a bearer token is needed')
  return token
}
