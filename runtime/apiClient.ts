import { Agent, request as send } from 'undici'
import { z } from 'zod'
import { type ErrorCode, errorCodes, Fenced, ShoalError, Stalled, Transient } from '../api/errors.ts'

export interface ApiClientOptions {
  baseUrl: string
  /** PEM; the only authority trusted, where given. */
  ca?: string | undefined
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

const errorBody = z.object({ code: z.string(), message: z.string() })
const retriable = new Set<ErrorCode>(['Unavailable', 'Timeout', 'Internal', 'StoreUnreachable', 'Conflict'])
const maxAnswerBytes = 64 << 20

/** A client of our own JSON APIs: errors come back as the class they were thrown as, by their code. */
export class ApiClient implements AsyncDisposable {
  readonly #options: ApiClientOptions
  readonly #agent: Agent

  constructor(options: ApiClientOptions) {
    this.#options = options
    this.#agent = new Agent({
      connect: { timeout: 5000, ...(options.ca !== undefined && { ca: options.ca }) },
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
    const json: unknown = bytes.length === 0 ? undefined : JSON.parse(bytes.toString())
    return options.schema ? options.schema.parse(json) : (json as T)
  }

  /** The answer's bytes. */
  async bytes(
    method: 'GET' | 'POST' | 'DELETE',
    path: string,
    options: Omit<RequestOptions<never>, 'schema'> = {},
  ): Promise<Buffer> {
    const timeoutMs = options.timeoutMs ?? this.#options.timeoutMs ?? 15_000
    const timeout = AbortSignal.timeout(timeoutMs)
    const token = await this.#options.token?.()
    const answer = await send(new URL(path, this.#options.baseUrl), {
      method,
      dispatcher: this.#agent,
      signal: options.signal ? AbortSignal.any([options.signal, timeout]) : timeout,
      headers: {
        ...(token !== undefined && { authorization: `Bearer ${token}` }),
        ...(options.body !== undefined && { 'content-type': 'application/json' }),
      },
      ...(options.body !== undefined && { body: JSON.stringify(options.body) }),
    })
      .then(
        async ({ statusCode, body }) => ({ statusCode, bytes: await limited(body) }),
        (error: unknown) => this.#failed(error, options.signal, timeoutMs),
      )
      .catch((error: unknown) =>
        error instanceof ShoalError ? Promise.reject(error) : this.#failed(error, options.signal, timeoutMs),
      )
    if (answer.statusCode >= 400) throw fromAnswer(answer.statusCode, answer.bytes)
    return answer.bytes
  }

  #failed(error: unknown, signal: AbortSignal | undefined, timeoutMs: number): never {
    signal?.throwIfAborted()
    const { name, message } = error as Error
    const host = new URL(this.#options.baseUrl).host
    if (name === 'TimeoutError')
      throw new Transient('Timeout', `${host}: no answer within ${timeoutMs} ms`, { cause: error })
    throw new Transient('Unavailable', `${host}: ${message}`, { cause: error })
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

function fromAnswer(status: number, bytes: Buffer): ShoalError {
  let body: z.infer<typeof errorBody>
  try {
    body = errorBody.parse(JSON.parse(bytes.toString()))
  } catch {
    return new Transient(status === 401 ? 'Unauthorized' : 'Unavailable', `unexpected answer ${status}`)
  }
  const code = body.code in errorCodes ? (body.code as ErrorCode) : 'Internal'
  if (code === 'Fenced') return new Fenced(body.message)
  return retriable.has(code) ? new Transient(code, body.message) : new Stalled(code, body.message)
}
