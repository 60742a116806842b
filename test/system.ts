/** test/: tests of the whole system: real processes, brought up as the demo does it. */
import { chmod, readdir, readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { temporaryDir } from '../hack/parts/process.ts'
import { Kube } from '../hack/story/kube.ts'
import { type Progress, progressTo } from '../hack/story/progress.ts'
import { logsDir, type Shape } from '../hack/story/state.ts'
import { type System, type SystemOptions, startSystem } from '../hack/story/system.ts'

export interface TestSystem extends AsyncDisposable {
  system: System
  kube: Kube
  progress: Progress
  /** What the story has said so far. */
  told: string[]
  /** Runs a test's body; prints the processes' last lines when it fails. */
  explain<T>(body: () => Promise<T>): Promise<T>
}

/** A small system of its own in a temporary folder. Default: one region, no machines. */
export async function bringUp(
  shape: Partial<Shape> = {},
  more: Pick<SystemOptions, 'ownServers' | 'settings' | 'hubs'> = {},
): Promise<TestSystem> {
  await using stack = new AsyncDisposableStack()
  const temporary = stack.use(await temporaryDir('shoal-system'))
  // Builds and applications run as users of their own, and pass through to their folders.
  await chmod(temporary.path, 0o711)
  const dir = join(temporary.path, 'demo')
  const told: string[] = []
  const progress = progressTo((line) => told.push(line))
  const explain = async <T>(body: () => Promise<T>): Promise<T> => {
    try {
      return await body()
    } catch (error) {
      console.error(told.join('\n'))
      await printLogs(logsDir(dir))
      throw error
    }
  }
  const whole: Shape = { regions: ['eu-west'], machinesPerRegion: 0, small: true, ...shape }
  const system = stack.use(await explain(() => startSystem({ dir, shape: whole, progress, ...more })))
  const kube = stack.use(new Kube(system.state, progress))
  const owned = stack.move()
  return { system, kube, progress, told, explain, [Symbol.asyncDispose]: () => owned.disposeAsync() }
}

async function printLogs(logs: string) {
  for (const name of await readdir(logs).catch(() => [])) {
    const lines = (await readFile(join(logs, name), 'utf8')).trimEnd().split('\n')
    console.error(`── ${name}\n${lines.slice(-15).join('\n')}`)
  }
}
