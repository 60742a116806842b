/**
 * runtime/: what controllers, servers and roles stand on, and nothing that knows about builds, artifacts or machines.
 *
 *   Kubernetes   cluster (over transport) → reflector → controller (over workQueue), elector, events, conditions
 *   databases    sql, migrations
 *   HTTP         server, apiClient (here): errors cross it as the class they were thrown as
 *   identity     identity, dsse, certificates
 *   a process    shutdown, log, metrics, clock
 *
 * It promises that a neighbour's failure (a reset, a silence, a restart, garbage) is an error of `api/errors.ts` or is
 * borne, never a crash, a hang or a wrong answer. Time and randomness can be passed in wherever they matter.
 */
import { Agent, type Dispatcher, request as send } from 'undici'
import { z } from 'zod'
import { type ErrorCode, errorCodes, Fenced, ShoalError, Stalled, Transient, Waiting } from '../api/errors.ts'

export interface ApiClientOptions {
  baseUrl: string
  /** PEM; the only authority trusted, where given. */
  ca?: string | undefined
  /** PEM; the only certificate accepted, whatever name it bears: for replicas that share one. */
  pinned?: string | undefined
  /** The bearer token, asked for each request. */
  token?: (() => string | Promise<string>) | undefined
  timeoutMs?: number
}

interface RequestOptions<T> {
  body?: unknown
  schema?: z.ZodType<T>
  timeoutMs?: number
  signal?: AbortSignal | undefined
}

/** A certificate that is trusted by itself needs neither its issuer nor the right name. */
const pinnedTo = (ca: string | undefined) =>
  ca === undefined ? {} : { ca, allowPartialTrustChain: true, checkServerIdentity: () => undefined }

const errorBody = z.object({ code: z.string(), message: z.string() })
/** Refusals that may pass: a credential not known yet, a change at the same time, a copy being made again. */
const passing = new Set<ErrorCode>(['Unauthorized', 'Internal', 'Conflict', 'ReplicaMissing', 'ChecksumMismatch'])
const maxAnswerBytes = 64 << 20

/** A client of our own JSON APIs: errors come back as the class they were thrown as, by their code. */
export class ApiClient implements AsyncDisposable {
  readonly #options: ApiClientOptions
  readonly #agent: Agent

  constructor(options: ApiClientOptions) {
    this.#options = options
    this.#agent = new Agent({
      connect: { timeout: 5000, ...(options.ca !== undefined && { ca: options.ca }), ...pinnedTo(options.pinned) },
      keepAliveTimeout: 30_000,
      connections: 16,
    })
  }

  /** The answer, parsed. Throws `Transient` when there is none in time or it may be better next time. */
  async request<T = unknown>(
    method: 'GET' | 'POST' | 'DELETE',
    path: string,
    options: RequestOptions<T> = {},
  ): Promise<T> {
    const bytes = await this.bytes(method, path, options)
    try {
      const json: unknown = bytes.length === 0 ? undefined : JSON.parse(bytes.toString())
      return options.schema ? options.schema.parse(json) : (json as T)
    } catch (error) {
      throw new Transient('Unavailable', `${this.#host}: unexpected answer to ${method} ${path.split('?')[0]}`, {
        cause: error,
      })
    }
  }

  /** The answer's bytes. */
  async bytes(
    method: 'GET' | 'POST' | 'DELETE',
    path: string,
    options: Omit<RequestOptions<never>, 'schema'> = {},
  ): Promise<Buffer> {
    const timeoutMs = options.timeoutMs ?? this.#options.timeoutMs ?? 15_000
    // It takes whole milliseconds alone.
    const timeout = AbortSignal.timeout(Math.ceil(timeoutMs))
    const signal = options.signal ? AbortSignal.any([options.signal, timeout]) : timeout
    const token = await this.#options.token?.()
    try {
      return await limited(await this.#send(method, path, { token, body: options.body, signal }))
    } catch (error) {
      if (error instanceof ShoalError) throw error
      return this.#failed(error, options.signal, timeoutMs)
    }
  }

  /** The answer's bytes as they come, however long that takes; `Transient` when none came for `silenceMs` (60 s). */
  async *stream(
    path: string,
    options: { accept?: string; silenceMs?: number; signal?: AbortSignal } = {},
  ): AsyncGenerator<Buffer> {
    const { accept, silenceMs = 60_000, signal } = options
    const token = await this.#options.token?.()
    try {
      yield* await this.#send('GET', path, { token, accept, signal, silenceMs })
    } catch (error) {
      if (error instanceof ShoalError) throw error
      this.#failed(error, signal, silenceMs)
    }
  }

  /** The answer's body, when it is not an error. */
  async #send(
    method: Dispatcher.HttpMethod,
    path: string,
    options: Pick<RequestOptions<never>, 'body' | 'signal'> & {
      token: string | undefined
      accept?: string | undefined
      silenceMs?: number
    },
  ): Promise<Dispatcher.ResponseData['body']> {
    const { token, body: given, accept, signal, silenceMs } = options
    const { statusCode, headers, body } = await send(new URL(path, this.#options.baseUrl), {
      method,
      dispatcher: this.#agent,
      ...(signal && { signal }),
      ...(silenceMs !== undefined && { headersTimeout: silenceMs, bodyTimeout: silenceMs }),
      headers: {
        ...(token !== undefined && { authorization: `Bearer ${token}` }),
        ...(accept !== undefined && { accept }),
        ...(given !== undefined && { 'content-type': 'application/json' }),
      },
      ...(given !== undefined && { body: JSON.stringify(given) }),
    })
    if (statusCode < 400) return body
    throw fromAnswer(statusCode, await limited(body), Number(headers['retry-after']))
  }

  get #host(): string {
    return new URL(this.#options.baseUrl).host
  }

  #failed(error: unknown, signal: AbortSignal | undefined, timeoutMs: number): never {
    signal?.throwIfAborted()
    const { name, message } = error as Error
    if (['TimeoutError', 'HeadersTimeoutError', 'BodyTimeoutError'].includes(name))
      throw new Transient('Timeout', `${this.#host}: no answer within ${timeoutMs} ms`, { cause: error })
    throw new Transient('Unavailable', `${this.#host}: ${message}`, { cause: error })
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#agent.destroy()
  }
}

async function limited(body: AsyncIterable<Buffer>): Promise<Buffer> {
  const chunks: Buffer[] = []
  let size = 0
  for await (const chunk of body) {
    size += chunk.length
    if (size > maxAnswerBytes) throw new ShoalError('TooLarge', 'the answer is too large')
    chunks.push(chunk)
  }
  return Buffer.concat(chunks)
}

/** The class it was thrown as: said by `Fenced` itself, by Retry-After for Waiting, else by the code. */
function fromAnswer(status: number, bytes: Buffer, retryAfterSeconds: number): ShoalError {
  let body: z.infer<typeof errorBody>
  try {
    body = errorBody.parse(JSON.parse(bytes.toString()))
  } catch {
    return new Transient(status === 401 ? 'Unauthorized' : 'Unavailable', `unexpected answer ${status}`)
  }
  const { message } = body
  const code = knownCode(body.code, status)
  if (code === 'Fenced') return new Fenced(message)
  if (retryAfterSeconds >= 0) return new Waiting(code, message, { afterMs: retryAfterSeconds * 1000 })
  const passes = passing.has(code) || errorCodes[code].status === 503 || errorCodes[code].status === 504
  return passes ? new Transient(code, message) : new Stalled(code, message)
}

/** A newer server may have codes of its own. */
const knownCode = (code: string, status: number): ErrorCode =>
  Object.hasOwn(errorCodes, code) ? (code as ErrorCode) : status < 500 ? 'Invalid' : 'Internal'
