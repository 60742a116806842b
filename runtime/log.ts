import { type Logger, pino } from 'pino'

export type { Logger }

/** JSON lines on standard output, with the role in each. */
export const createLogger = (role: string, level = 'info'): Logger =>
  pino({
    level,
    base: { role },
    timestamp: pino.stdTimeFunctions.isoTime,
    formatters: { level: (label) => ({ level: label }) },
  })
