import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import type { GoalReport, Grant } from '../api/fleetApi.ts'
import { type Program, startProgram, until } from '../hack/parts/process.ts'
import { stopPlaces } from './stopPlaces.ts'

/** One machine: its agent's process, and what can be seen of its application. */
export class TestMachine implements AsyncDisposable {
  readonly name: string
  readonly dir: string
  readonly port: number
  reports: GoalReport[] = []
  grants: Grant[] = []
  polls = 0
  agent: Program | undefined

  constructor(name: string, dir: string, port: number) {
    this.name = name
    this.dir = dir
    this.port = port
  }

  get dataDir(): string {
    return join(this.dir, 'data')
  }

  get current(): string {
    return join(this.dataDir, 'places', 'web', 'current')
  }

  get control(): string {
    return join(this.dataDir, 'places', 'web', 'control')
  }

  start(options: object = {}): Program {
    const given = {
      enrolmentFile: join(this.dir, 'enrolment.json'),
      dataDir: this.dataDir,
      swarm: { host: '127.0.0.1', port: 0, address: '127.0.0.1' },
      timings: { retryMs: 200, retryMaxMs: 500 },
      ...options,
    }
    const file = fileURLToPath(import.meta.resolve('./testProcess.ts'))
    this.agent = startProgram(process.execPath, [file, JSON.stringify(given)], {
      name: this.name,
      logFile: join(this.dir, 'agent.log'),
    })
    return this.agent
  }

  get report(): GoalReport | undefined {
    return this.reports.find(({ name }) => name === 'web')
  }

  /** What the application answers; undefined when it doesn't. */
  async ask(path = '/version'): Promise<string | undefined> {
    const options = { signal: AbortSignal.timeout(1000), headers: { connection: 'close' } }
    const response = await fetch(`http://127.0.0.1:${this.port}${path}`, options).catch(() => undefined)
    return response?.ok ? await response.text() : undefined
  }

  async runs(version: string, timeoutMs = 20_000): Promise<string> {
    const unless = this.agent ? { unless: this.agent } : {}
    await until(`${this.name} runs ${version}`, async () => (await this.ask()) === version, { timeoutMs, ...unless })
    return (await this.ask('/pid')) ?? ''
  }

  async reached(state: GoalReport['state'], revision: number, timeoutMs = 20_000): Promise<GoalReport> {
    const what = `${this.name} reports ${state} of ${revision}`
    return until(what, () => this.reports.find((r) => r.state === state && r.revision === revision), { timeoutMs })
  }

  async supervisorPid(): Promise<number> {
    const lines = (await readFile(join(this.control, 'supervisor.log'), 'utf8')).trim().split('\n')
    return (JSON.parse(lines.at(-1) ?? '{}') as { pid: number }).pid
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.agent?.stop()
    await stopPlaces(this.dataDir)
  }
}
