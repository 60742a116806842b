import { spawn } from 'node:child_process'
import { get } from 'node:http'
import { connect } from 'node:net'
import type { Application } from './application.ts'
import { signal } from './processes.ts'
import type { Probe, Run } from './protocol.ts'
import { environmentOf, findUser } from './user.ts'

const startingIntervalMs = 200
const steadyIntervalMs = 2000
const timeoutMs = 2000
const commandTimeoutMs = 5000
/** Once it has been healthy for long enough, so many failures in a row count. */
const steadyFailures = 3

/** Probes a running application, often until it is steady, then now and then. */
export class HealthWatch {
  readonly #run: Run
  readonly #application: Application
  readonly #steadyAfterMs: number
  #timer: NodeJS.Timeout | undefined
  #stopped = false
  #healthySinceMs: number | undefined
  #failures = 0
  #steady = false
  /** What the last probe that failed said. */
  problem = 'no answer yet'

  /** Healthy for `steadyAfterMs` makes it steady: 0 for one that was found running. */
  constructor(run: Run, application: Application, steadyAfterMs: number) {
    this.#run = run
    this.#application = application
    this.#steadyAfterMs = steadyAfterMs
    void this.#probe()
  }

  /** It lives, and has answered well for long enough. */
  get steady(): boolean {
    if (this.#application.end !== undefined) return false
    const healthyForMs = this.#healthySinceMs === undefined ? -1 : performance.now() - this.#healthySinceMs
    this.#steady ||= healthyForMs >= this.#steadyAfterMs
    return this.#steady
  }

  stop(): void {
    this.#stopped = true
    clearTimeout(this.#timer)
  }

  async #probe(): Promise<void> {
    const problem = this.#run.health ? await ask(this.#run.health, this.#run) : undefined
    if (this.#stopped || this.#application.end !== undefined) return
    if (problem === undefined) {
      this.#healthySinceMs ??= performance.now()
      this.#failures = 0
    } else {
      this.problem = problem
      if (!this.steady || ++this.#failures >= steadyFailures) {
        this.#healthySinceMs = undefined
        this.#steady = false
      }
    }
    this.#timer = setTimeout(() => void this.#probe(), this.steady ? steadyIntervalMs : startingIntervalMs)
  }
}

/** What is wrong, or undefined. */
function ask(probe: Probe, run: Run): Promise<string | undefined> {
  if ('command' in probe) return askCommand(probe.command, run)
  return 'tcpPort' in probe ? askTcp(probe.tcpPort) : askHttp(probe)
}

function askHttp({ port, path }: { port: number; path: string }): Promise<string | undefined> {
  return new Promise((resolve) => {
    const request = get({ host: '127.0.0.1', port, path, agent: false, timeout: timeoutMs }, (response) => {
      response.resume()
      const status = response.statusCode ?? 0
      resolve(status >= 200 && status < 400 ? undefined : `${path} answered ${status}`)
    })
    request.once('timeout', () => request.destroy(new Error(`no answer within ${timeoutMs} ms`)))
    request.once('error', (error) => resolve(`${path}: ${error.message}`))
  })
}

function askTcp(port: number): Promise<string | undefined> {
  return new Promise((resolve) => {
    const socket = connect({ host: '127.0.0.1', port, timeout: timeoutMs }, () => resolve(undefined))
    socket.once('connect', () => socket.destroy())
    socket.once('timeout', () => socket.destroy(new Error(`no connection within ${timeoutMs} ms`)))
    socket.once('error', (error) => resolve(`port ${port}: ${error.message}`))
  })
}

/** As the application's user, with its variables. What it prints is not kept. */
function askCommand([program = '', ...args]: string[], run: Run): Promise<string | undefined> {
  return new Promise((resolve) => {
    try {
      const user = findUser(run.user)
      const child = spawn(program, args, {
        ...{ cwd: run.release, env: environmentOf(run, user), stdio: 'ignore', detached: true },
        ...user,
      })
      const timer = setTimeout(() => {
        resolve(`${program}: not done within ${commandTimeoutMs} ms`)
        if (child.pid !== undefined) signal(-child.pid, 'SIGKILL')
      }, commandTimeoutMs)
      const settle = (problem: string | undefined) => {
        clearTimeout(timer)
        resolve(problem)
      }
      child.once('error', (error) => settle(`${program}: ${error.message}`))
      child.once('exit', (code, name) =>
        settle(code === 0 ? undefined : `${program} ended with ${name ?? `code ${code}`}`),
      )
    } catch (error) {
      resolve(`${program}: ${(error as Error).message}`)
    }
  })
}
