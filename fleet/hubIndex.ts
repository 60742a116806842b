import { type IndexPayload, openIndex } from '../rollout/envelope.ts'
import type { Clock } from '../runtime/clock.ts'
import type { VerificationKey } from '../runtime/dsse.ts'
import type { Database } from '../runtime/sql.ts'

/**
 * The hub's signed index of this region's goals. It is fresh for a while after one that moved on was seen, by this
 * process' own monotonic clock: a hub that is gone, or one whose old words are repeated, makes the region stop granting.
 */
export class HubIndex {
  readonly #database: Database
  readonly #keys: VerificationKey[]
  readonly #clock: Clock
  readonly #lifetimeMs: number
  #current: { payload: IndexPayload; envelope: string } | undefined
  #freshAt: number | undefined

  constructor(options: { database: Database; keys: VerificationKey[]; clock: Clock; lifetimeMs: number }) {
    this.#database = options.database
    this.#keys = options.keys
    this.#clock = options.clock
    this.#lifetimeMs = options.lifetimeMs
  }

  /** Takes up what was seen before this process began: known, but not fresh. */
  async load(): Promise<void> {
    const [row] = await this.#database.query<{ envelope: string }>('SELECT envelope FROM hub_index WHERE id = 1')
    if (row) this.#current = { payload: openIndex(row.envelope, this.#keys), envelope: row.envelope }
  }

  /** Takes over an index the hub signed; false when it is no later than the one that is here. */
  async put(payload: IndexPayload, envelope: string): Promise<boolean> {
    if (this.#current && payload.issuedAt <= this.#current.payload.issuedAt) return false
    this.#freshAt = this.#clock.monotonic()
    this.#current = { payload, envelope }
    await this.#database.execute(
      `INSERT INTO hub_index (id, issued_at_ms, envelope) VALUES (1, ?, ?)
       ON DUPLICATE KEY UPDATE envelope = IF(VALUES(issued_at_ms) > issued_at_ms, VALUES(envelope), envelope),
         issued_at_ms = GREATEST(issued_at_ms, VALUES(issued_at_ms))`,
      [payload.issuedAt, envelope],
    )
    return true
  }

  get envelope(): string | undefined {
    return this.#current?.envelope
  }

  get fresh(): boolean {
    return this.#freshAt !== undefined && this.#clock.monotonic() - this.#freshAt < this.#lifetimeMs
  }

  /** How long it stays fresh, 0 when it is not. */
  get leftMs(): number {
    return this.#freshAt === undefined ? 0 : Math.max(0, this.#lifetimeMs - (this.#clock.monotonic() - this.#freshAt))
  }

  /** Whether no failure of this goal's holds up others any more: it is gone back to, or all its waves are complete. */
  trusts(goal: { namespace: string; name: string; sequence: number; rollback: boolean }): boolean {
    const { settled = false } = this.#current?.payload.goals[`${goal.namespace}/${goal.name}`] ?? {}
    return goal.rollback || (settled && this.names(goal))
  }

  /** Whether the hub's last word on this goal is this sequence. */
  names(goal: { namespace: string; name: string; sequence: number }): boolean {
    return this.#current?.payload.goals[`${goal.namespace}/${goal.name}`]?.sequence === goal.sequence
  }
}
