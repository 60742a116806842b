import { serveTracker } from '../../swarm/trackerServer.ts'
import type { Listen } from './commands.ts'
import { aborted, stopSignal } from './session.ts'

/** @throws ShoalError `Conflict` when the port is taken. */
export async function tracker({ listen }: { listen: Listen }): Promise<void> {
  const signal = stopSignal()
  await using server = await serveTracker(listen)
  console.error(`the tracker is ${server.url}, until stopped`)
  await aborted(signal)
}
