import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { closeSync, openSync, realpathSync } from 'node:fs'
import { setTimeout as delay } from 'node:timers/promises'
import { identify, isRunning, markedProcesses, type ProcessId, signal } from './processes.ts'
import type { Run } from './protocol.ts'
import { environmentOf, findUser } from './user.ts'

const killedWithinMs = 10_000

/** A running application: our child, or one a former supervisor started. */
export class Application {
  readonly id: ProcessId
  readonly #mark: string
  readonly #child: boolean
  #end: string | undefined

  private constructor(id: ProcessId, mark: string, child: boolean) {
    this.id = id
    this.#mark = mark
    this.#child = child
  }

  /**
   * Starts `run` in the folder `link` points to, in a session of its own, writing straight to the log file: it must not
   * notice when the supervisor goes. Throws an Error when it can't be started.
   */
  static async start(run: Run, o: { link: string; logFile: string; mark: string }): Promise<Application> {
    const user = findUser(run.user)
    const env = environmentOf(run, user)
    const [name, value] = splitMark(o.mark)
    const [program = '', ...args] = run.command
    const log = openSync(o.logFile, 'a', 0o640)
    try {
      const child = spawn(program, args, {
        cwd: realpathSync(o.link),
        env: { ...env, [name]: value },
        detached: true,
        stdio: ['ignore', log, log],
        ...user,
      })
      await once(child, 'spawn')
      const id = identify(child.pid ?? 0) ?? { pid: child.pid ?? 0, started: 'gone' }
      const application = new Application(id, o.mark, true)
      child.once('exit', (code, signalName) => {
        application.#end = signalName ?? `code ${code}`
      })
      child.unref()
      return application
    } finally {
      closeSync(log)
    }
  }

  /** The application a former supervisor recorded; undefined when it is gone. */
  static adopt(id: ProcessId, mark: string): Application | undefined {
    return isRunning(id) ? new Application(id, mark, false) : undefined
  }

  /** How it ended; undefined while it runs. */
  get end(): string | undefined {
    if (!this.#child && !isRunning(this.id)) this.#end ??= 'an unknown code'
    return this.#end
  }

  /** Asks it to end, then ends it and everything it started. */
  async stop(stop: Run['stop']): Promise<void> {
    if (this.end === undefined) signal(-this.id.pid, stop.signal)
    const deadline = performance.now() + stop.timeoutMs
    while (this.end === undefined && performance.now() < deadline) await delay(20)
    if (this.end === undefined || groupLives(this.id.pid)) signal(-this.id.pid, 'SIGKILL')
    await endMarked(this.#mark)
  }
}

function groupLives(group: number): boolean {
  try {
    return process.kill(-group, 0)
  } catch {
    return false
  }
}

/** Ends every process with the mark, at once. Throws an Error when one can't be ended: it may hold the port. */
export async function endMarked(mark: string): Promise<void> {
  const deadline = performance.now() + killedWithinMs
  for (;;) {
    const left = markedProcesses(mark)
    if (left.length === 0) return
    if (performance.now() > deadline) throw new Error(`process ${left[0]?.pid} does not end`)
    for (const { pid } of left) signal(pid, 'SIGKILL')
    await delay(25)
  }
}

function splitMark(mark: string): [string, string] {
  const at = mark.indexOf('=')
  return [mark.slice(0, at), mark.slice(at + 1)]
}
