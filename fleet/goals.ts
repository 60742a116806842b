import type { MachineSelector } from '../api/goalState.ts'
import { type GoalPayload, openGoal } from '../rollout/envelope.ts'
import type { VerificationKey } from '../runtime/dsse.ts'
import type { Database, Sql } from '../runtime/sql.ts'
import { heardMachines, type Machine } from './machines.ts'

/** A goal as the hub signed it. */
export interface Goal {
  payload: GoalPayload
  envelope: string
}

interface GoalRow {
  namespace: string
  name: string
  sequence: number
  envelope: string
}

const rowLimit = 1000

/** The region's goals: rows that only grow in sequence, and a copy of them in memory that polls are answered from. */
export class Goals {
  readonly #database: Database
  readonly #keys: VerificationKey[]
  #offered = new Map<string, Goal>()

  constructor(database: Database, keys: VerificationKey[]) {
    this.#database = database
    this.#keys = keys
  }

  /** The goals that are offered to machines, by `namespace/name`. */
  get offered(): ReadonlyMap<string, Goal> {
    return this.#offered
  }

  /** Reads the rows again: another replica may have written them. What doesn't verify (any more) is left out. */
  async refresh(): Promise<void> {
    const rows = await this.#database.query<GoalRow>(
      'SELECT namespace, name, sequence, envelope FROM goal WHERE NOT withdrawn LIMIT ?',
      [rowLimit],
    )
    const offered = new Map<string, Goal>()
    for (const { namespace, name, sequence, envelope } of rows) {
      const key = `${namespace}/${name}`
      const known = this.#offered.get(key)
      if (known?.payload.sequence === sequence) offered.set(key, known)
      else {
        const payload = this.#verified(envelope)
        if (payload) offered.set(key, { payload, envelope })
      }
    }
    this.#offered = offered
  }

  #verified(envelope: string): GoalPayload | undefined {
    try {
      return openGoal(envelope, this.#keys)
    } catch {
      return undefined
    }
  }

  /** Takes over what the hub signed; false when the region has a later one already. */
  async put(payload: GoalPayload, envelope: string): Promise<boolean> {
    const { namespace, name, sequence, revision, templateHash } = payload
    const stored = await this.#database.transaction(
      async (sql) => {
        const [known] = await sql.query<GoalRow & { withdrawn: number }>(
          'SELECT namespace, name, sequence, envelope, withdrawn FROM goal WHERE namespace = ? AND name = ? FOR UPDATE',
          [namespace, name],
        )
        if (known && known.sequence > sequence) return false
        if (known?.sequence === sequence && !known.withdrawn) return true
        await sql.execute(
          `INSERT INTO goal (namespace, name, sequence, revision, template, envelope) VALUES (?, ?, ?, ?, ?, ?)
           ON DUPLICATE KEY UPDATE sequence = VALUES(sequence), revision = VALUES(revision),
             template = VALUES(template), envelope = VALUES(envelope), withdrawn = FALSE`,
          [namespace, name, sequence, revision, templateHash, envelope],
        )
        await selectMachines(sql, payload, await heardMachines(sql))
        return true
      },
      { idempotent: true },
    )
    await this.refresh()
    return stored
  }

  /** Stops offering the goals that are not named; machines keep what they run. */
  async withdrawExcept(named: Set<string>): Promise<void> {
    for (const [key, { payload }] of this.#offered) {
      if (named.has(key)) continue
      await this.#database.execute(
        'UPDATE goal SET withdrawn = TRUE WHERE namespace = ? AND name = ? AND sequence = ?',
        [payload.namespace, payload.name, payload.sequence],
      )
    }
    await this.refresh()
  }

  /** Notes which goals select a machine that is new, or has other labels than before. */
  async reselect(machine: Machine): Promise<void> {
    await this.#database.transaction(async (sql) => {
      for (const { payload } of this.#offered.values()) await selectMachines(sql, payload, [machine])
    })
  }

  /** Those that select this machine. */
  selecting(machine: Machine): Goal[] {
    return [...this.#offered.values()].filter(({ payload }) => selects(payload, machine))
  }
}

/** A goal selects machines that serve its namespace and have all its labels. */
function selects(goal: { namespace: string; selector: MachineSelector }, { labels, namespaces }: Machine): boolean {
  const matches = Object.entries(goal.selector.matchLabels).every(([key, value]) => labels[key] === value)
  return matches && namespaces.includes(goal.namespace)
}

/** Brings `machine_goal` in line with the selector: rows for those selected, none for others. Index: PRIMARY. */
async function selectMachines(sql: Sql, payload: GoalPayload, machines: Machine[]): Promise<void> {
  const { namespace, name } = payload
  const selected = machines.filter((machine) => selects(payload, machine)).map((machine) => machine.name)
  const rest = machines.map((machine) => machine.name).filter((machine) => !selected.includes(machine))
  if (selected.length > 0)
    await sql.execute('INSERT IGNORE INTO machine_goal (namespace, name, machine) VALUES ?', [
      selected.map((machine) => [namespace, name, machine]),
    ])
  if (rest.length > 0)
    await sql.execute('DELETE FROM machine_goal WHERE namespace = ? AND name = ? AND machine IN (?)', [
      namespace,
      name,
      rest,
    ])
}
