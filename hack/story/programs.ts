import type { Program } from '../parts/process.ts'
import { isReady, type RoleOptions, startRole } from './roleProcess.ts'

/** The roles' processes, by name: as many as there are now. */
export class Programs implements AsyncDisposable {
  readonly running = new Map<string, Program>()
  readonly #started = new Map<string, { role: RoleOptions; url: string }>()
  readonly #ca: string

  constructor(ca: string) {
    this.#ca = ca
  }

  /** Starts one and waits until it is ready at `url`. */
  async start(role: RoleOptions, url: string): Promise<Program> {
    this.#started.set(role.name, { role, url })
    const program = startRole(role)
    this.running.set(role.name, program)
    await isReady(program, url, this.#ca)
    return program
  }

  async startAgain(name: string): Promise<void> {
    const started = this.#started.get(name)
    if (!started) throw new Error(`no program ${name}`)
    await this.start(started.role, started.url)
  }

  /** Ends one for good. */
  async end(name: string): Promise<void> {
    const program = this.running.get(name)
    this.running.delete(name)
    this.#started.delete(name)
    await program?.stop({ timeoutMs: 10_000 })
  }

  async [Symbol.asyncDispose]() {
    await Promise.all([...this.running.values()].map((program) => program.stop({ timeoutMs: 5000 })))
  }
}
