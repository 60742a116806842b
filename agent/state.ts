import { join } from 'node:path'
import { z } from 'zod'
import { readJson, removeLeftovers, writeDurably } from './supervisor/durable.ts'

const memory = z.object({
  /** When the newest index was issued that this machine has seen. */
  indexIssuedAt: z.int().default(0),
  /** The accepted envelopes, by namespace/name. Released: another goal has its place; only the sequence still counts. */
  goals: z
    .record(z.string(), z.object({ sequence: z.int(), envelope: z.string(), released: z.boolean().default(false) }))
    .default({}),
})
export type Memory = z.infer<typeof memory>

/** What the agent must not forget: the sequences it has seen. One file, replaced as a whole. */
export class AgentState {
  readonly #file: string
  #memory: Memory

  private constructor(file: string, memory: Memory) {
    this.#file = file
    this.#memory = memory
  }

  /** Throws when the file is there and can't be read: a machine that forgot would accept what is old. */
  static async open(dataDir: string): Promise<AgentState> {
    const file = join(dataDir, 'state.json')
    await removeLeftovers(file)
    return new AgentState(file, memory.parse((await readJson(file)) ?? {}))
  }

  get memory(): Readonly<Memory> {
    return this.#memory
  }

  async rememberIndex(issuedAt: number): Promise<void> {
    await this.#save({ ...this.#memory, indexIssuedAt: issuedAt })
  }

  async rememberGoal(key: string, goal: { sequence: number; envelope: string }): Promise<void> {
    await this.#save({ ...this.#memory, goals: { ...this.#memory.goals, [key]: { ...goal, released: false } } })
  }

  async releaseGoal(key: string): Promise<void> {
    const goal = this.#memory.goals[key]
    if (goal)
      await this.#save({ ...this.#memory, goals: { ...this.#memory.goals, [key]: { ...goal, released: true } } })
  }

  /** On disk first: what could not be written was not learnt. */
  async #save(memory: Memory): Promise<void> {
    await writeDurably(this.#file, JSON.stringify(memory))
    this.#memory = memory
  }
}
