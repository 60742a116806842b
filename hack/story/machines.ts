import type { Report } from './report.ts'
import type { MachineState } from './state.ts'

/** Asks every machine's application, over HTTP, which commit it runs and whether it is well. */
export function askMachines(machines: MachineState[]): Promise<Report['machines']> {
  return Promise.all(
    machines.map(async ({ name, region, url }) => {
      const [version, health] = await Promise.all([ask(`${url}/version`), ask(`${url}/healthz`)])
      return { name, region, version: version ?? '', healthy: health !== undefined }
    }),
  )
}

/** The body of a 200 answer, without the newline at its end; undefined for anything else. */
async function ask(url: string): Promise<string | undefined> {
  try {
    const response = await fetch(url, { signal: AbortSignal.timeout(3000), headers: { connection: 'close' } })
    const text = await response.text()
    return response.ok ? text.trim() : undefined
  } catch {
    return undefined
  }
}

/** Every version that any machine answered with while it ran: what the fleet's users saw. */
export class VersionWatch implements AsyncDisposable {
  /** Machine names by version. */
  readonly seen = new Map<string, Set<string>>()
  readonly #loop: Promise<void>
  #stopped = false

  constructor(machines: MachineState[], everyMs = 500) {
    this.#loop = this.#run(machines, everyMs)
  }

  async [Symbol.asyncDispose]() {
    this.#stopped = true
    await this.#loop
  }

  async #run(machines: MachineState[], everyMs: number) {
    while (!this.#stopped) {
      for (const { name, version } of await askMachines(machines)) {
        const names = this.seen.get(version) ?? new Set()
        this.seen.set(version, names.add(name))
      }
      await new Promise((resolve) => setTimeout(resolve, everyMs))
    }
  }
}
