import { get } from 'node:http'
import type { Application } from './application.ts'
import type { Run } from './protocol.ts'

const startingIntervalMs = 200
const steadyIntervalMs = 2000
const timeoutMs = 2000
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
    const problem = this.#run.health ? await ask(this.#run.health) : undefined
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
function ask({ port, path }: { port: number; path: string }): Promise<string | undefined> {
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
