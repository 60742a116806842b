import { fork } from 'node:child_process'
import { once } from 'node:events'
import { mkdirSync, openSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { endDemoProcesses, marker } from './processes.ts'
import { readState, type Shape, type SystemState } from './state.ts'
import { removeSystem } from './system.ts'

/** What the keeper tells its starter. */
export type KeeperMessage = { line: string } | { ready: true } | { failed: string }

/** The process that holds a system up. */
export interface Keeper {
  state: SystemState
  /** Ends it and everything it holds up. */
  end(): Promise<void>
  /** Lets it go on without us. */
  leave(): void
}

interface KeepUp {
  dir: string
  shape: Shape
  print: (line: string) => void
}

/**
 * Starts a keeper and waits until its system is up. Unless it is left, it ends with this process, even after a kill -9:
 * it sees the channel between us close.
 */
export async function keepUp({ dir, shape, print }: KeepUp): Promise<Keeper> {
  await endKeeper(dir)
  mkdirSync(dirname(dir), { recursive: true })
  const log = openSync(`${dir}.log`, 'w')
  const keeper = fork(join(import.meta.dirname, 'keeper.ts'), [dir, JSON.stringify(shape)], {
    detached: true,
    stdio: ['ignore', log, log, 'ipc'],
    env: { ...process.env, [marker]: dir },
  })
  const exited = once(keeper, 'exit')
  const interrupt = () => keeper.kill('SIGTERM')
  process.on('SIGINT', interrupt).on('SIGTERM', interrupt)
  const failure = await new Promise<string | undefined>((resolve) => {
    keeper.on('message', (message: KeeperMessage) => {
      if ('line' in message) print(message.line)
      else resolve('failed' in message ? message.failed : undefined)
    })
    keeper.once('exit', (code, signal) => resolve(`it ended (${signal ?? code}); see ${dir}.log`))
  })
  process.off('SIGINT', interrupt).off('SIGTERM', interrupt)
  if (failure !== undefined) {
    await exited
    throw new Error(failure)
  }
  const state = readState(dir)
  if (!state) throw new Error(`no state in ${dir}`)
  return {
    state,
    async end() {
      keeper.kill('SIGTERM')
      await Promise.race([exited, delay(20_000)])
      await removeSystem(dir)
    },
    leave() {
      keeper.send('stay')
      keeper.disconnect()
      keeper.unref()
    },
  }
}

/** Ends whatever there is of a system in `dir`: its keeper first, so that it ends the rest in order. */
export async function endKeeper(dir: string): Promise<void> {
  await endDemoProcesses(dir, 10_000)
  await removeSystem(dir)
}
