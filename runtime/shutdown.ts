import type { Logger } from './log.ts'

/** Runs a role until it ends or SIGTERM or SIGINT aborts its signal; a second one ends the process at once. */
export async function runRole(log: Logger, role: (signal: AbortSignal) => Promise<void>): Promise<void> {
  const stop = new AbortController()
  const onSignal = (name: NodeJS.Signals) => {
    if (stop.signal.aborted) process.exit(1)
    log.info({ signal: name }, 'stopping')
    stop.abort()
  }
  process.on('SIGTERM', onSignal).on('SIGINT', onSignal)
  process.on('unhandledRejection', (error) => {
    log.error({ err: error }, 'unhandled rejection')
    process.exit(1)
  })
  await role(stop.signal)
  log.info('stopped')
}
