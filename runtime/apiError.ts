import { type ErrorCode, ShoalError } from '../api/errors.ts'

/** What the API server answered with an error. `reason` is its own word, as `AlreadyExists`. */
export class ApiError extends ShoalError {
  override readonly name = 'ApiError'
  readonly status: number
  readonly reason: string
  /** When the server wants to be asked again. */
  readonly retryAfterMs: number | undefined

  constructor(status: number, reason: string, message: string, retryAfterMs?: number) {
    super(codeOf(status), message)
    this.status = status
    this.reason = reason
    this.retryAfterMs = retryAfterMs
  }

  /** From an error answer: a metav1.Status, or whatever a proxy sent instead. */
  static from(status: number, text: string, retryAfter: unknown): ApiError {
    let answer: { reason?: unknown; message?: unknown } = {}
    try {
      answer = Object(JSON.parse(text)) as typeof answer
    } catch {
      // Plain text, or a proxy's page.
    }
    const { reason, message } = answer
    const retryAfterMs = Number(retryAfter) * 1000
    return new ApiError(
      status,
      typeof reason === 'string' ? reason : 'Unknown',
      typeof message === 'string' ? message : text.slice(0, 300),
      retryAfterMs > 0 ? retryAfterMs : undefined,
    )
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
