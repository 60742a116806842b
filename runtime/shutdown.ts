import type { Logger } from './log.ts'

/**
 * Runs a role until it ends or SIGTERM or SIGINT aborts its signal; a second one ends the process at once. The process
 * ends with the role: 0, or 1 when it threw.
 */
export async function runRole(log: Logger, role: (signal: AbortSignal) => Promise<void>): Promise<void> {
  const stop = new AbortController()
  const onSignal = (name: NodeJS.Signals) => {
    if (stop.signal.aborted) process.exit(1)
    log.info({ signal: name }, 'stopping')
    stop.abort()
  }
  const fail = (message: string) => (error: unknown) => {
    log.error({ err: error }, message)
    process.exit(1)
  }
  process.on('SIGTERM', onSignal).on('SIGINT', onSignal)
  process.on('unhandledRejection', fail('unhandled rejection')).on('uncaughtException', fail('uncaught exception'))
  try {
    await role(stop.signal)
  } catch (error) {
    // What was only interrupted is no failure.
    if (!stop.signal.aborted || error !== stop.signal.reason) fail('failed')(error)
  }
  log.info('stopped')
  process.exit(0)
}
