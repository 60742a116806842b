import { type Logger, pino, stdSerializers } from 'pino'

export type { Logger }

/** JSON lines on standard output, with the role in each. */
export const createLogger = (role: string, level = 'info'): Logger =>
  pino(
    {
      level,
      base: { role },
      timestamp: pino.stdTimeFunctions.isoTime,
      formatters: { level: (label) => ({ level: label }) },
      serializers: { err: withoutContents },
    },
    // pino's default writes later: the last lines of a process that exits came out of order.
    pino.destination({ dest: 1, sync: true }),
  )

/**
 * What an error is and where it happened. Drivers hang more on theirs: the SQL with its values, the request with its
 * headers; none of that belongs in a log.
 */
function withoutContents(error: unknown): unknown {
  if (!(error instanceof Error)) return { message: String(error) }
  const { type, message, stack } = stdSerializers.err(error)
  const { code, errno, status, reason } = error as {
    code?: unknown
    errno?: unknown
    status?: unknown
    reason?: unknown
  }
  return { type, message, code, errno, status, reason, stack }
}
