/** Holds a system up until SIGTERM, or until its starter is gone without having said `stay`. Arguments: folder, shape. */
import { once } from 'node:events'
import { writeEnvironment } from './hints.ts'
import type { KeeperMessage } from './keeperClient.ts'
import { progressTo } from './progress.ts'
import { type Shape, writeState } from './state.ts'
import { startSystem } from './system.ts'

const [dir = '', shape = '{}'] = process.argv.slice(2)
const stop = new AbortController()
let stays = false
process.on('SIGTERM', () => stop.abort()).on('SIGINT', () => stop.abort())
process.on('message', (message) => {
  stays ||= message === 'stay'
})
process.on('disconnect', () => {
  if (!stays) stop.abort()
})

const tell = (message: KeeperMessage) => process.connected && process.send?.(message)
const progress = progressTo((line) => {
  console.log(line)
  tell({ line })
})

try {
  const stopped = stop.signal.aborted ? Promise.resolve() : once(stop.signal, 'abort')
  const starting = startSystem({ dir, shape: JSON.parse(shape) as Shape, progress, changed: writeState })
  // Stopped while it starts: what is half up is ended by the clean-up of the next line's failure, or by whoever stopped us.
  const system = await Promise.race([starting, stopped.then(() => undefined)])
  if (system) {
    writeState(system.state)
    writeEnvironment(system.state)
    tell({ ready: true })
    await stopped
    await system[Symbol.asyncDispose]()
  }
} catch (error) {
  console.error(error)
  tell({ failed: error instanceof Error ? error.message : String(error) })
}
process.exit()
