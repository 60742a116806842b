import { isDeepStrictEqual } from 'node:util'
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

export interface GoalName {
  namespace: string
  name: string
}

interface GoalRow extends GoalName {
  sequence: number
}

export const keyOf = ({ namespace, name }: GoalName): string => `${namespace}/${name}`

export const isOf = (each: GoalName, goal: GoalName): boolean =>
  each.name === goal.name && each.namespace === goal.namespace

/** Of a machine's few goals, a look at each is faster than a map of them. */
export const find = <T extends GoalName>(some: T[], goal: GoalName): T | undefined =>
  some.find((each) => isOf(each, goal))

const rowLimit = 1000

/** The region's goals: rows that only grow in sequence, and a copy of them in memory that polls are answered from. */
export class Goals {
  readonly #database: Database
  readonly #keys: VerificationKey[]
  #offered = new Map<string, Goal>()
  #byNamespace = new Map<string, Goal[]>()
  #onChange: (changed: Goal[]) => void = () => undefined

  constructor(database: Database, keys: VerificationKey[]) {
    this.#database = database
    this.#keys = keys
  }

  /** The goals that are offered to machines, by `namespace/name`. */
  get offered(): ReadonlyMap<string, Goal> {
    return this.#offered
  }

  /** Called with the goals that are new here, or have a new sequence. */
  onChange(handler: (changed: Goal[]) => void): void {
    this.#onChange = handler
  }

  /** Reads the rows again: another replica may have written them. What doesn't verify (any more) is left out. */
  async refresh(): Promise<void> {
    const rows = await this.#database.query<GoalRow>(
      'SELECT namespace, name, sequence FROM goal WHERE NOT withdrawn LIMIT ?',
      [rowLimit],
    )
    const offered = new Map<string, Goal>()
    const changed: Goal[] = []
    for (const row of rows) {
      const key = keyOf(row)
      const known = this.#offered.get(key)
      // What was read before a later one was put is old.
      const goal = known && known.payload.sequence >= row.sequence ? known : await this.#read(row)
      if (!goal) continue
      offered.set(key, goal)
      if (goal !== known) changed.push(goal)
    }
    this.#offered = offered
    this.#byNamespace = Map.groupBy(offered.values(), ({ payload }) => payload.namespace)
    if (changed.length > 0) this.#onChange(changed)
  }

  async #read({ namespace, name }: GoalRow): Promise<Goal | undefined> {
    const [row] = await this.#database.query<{ envelope: string }>(
      'SELECT envelope FROM goal WHERE namespace = ? AND name = ?',
      [namespace, name],
    )
    const payload = row && this.#verified(row.envelope)
    return payload && { payload, envelope: row.envelope }
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
        const [known] = await sql.query<GoalRow & { withdrawn: number; envelope: string }>(
          'SELECT sequence, envelope, withdrawn FROM goal WHERE namespace = ? AND name = ? FOR UPDATE',
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
        const before = known && this.#verified(known.envelope)
        if (before && standsForAnother(before, payload)) await forgetNumbers(sql, payload)
        // Machines that came since then were selected when they polled.
        if (!before || known.withdrawn || !isDeepStrictEqual(before.selector, payload.selector))
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

  /** Those that select this machine. */
  selecting(machine: Machine): Goal[] {
    return machine.namespaces.flatMap((namespace) =>
      (this.#byNamespace.get(namespace) ?? []).filter(({ payload }) => selects(payload, machine)),
    )
  }

  /** These machines are none of the goal's any more. */
  deselect(goal: GoalName, machines: string[]): Promise<void> {
    return deselectMachines(this.#database, goal, machines)
  }
}

/** The hub counts anew: the goal was deleted and made again, or the hub was restored from a backup. */
const standsForAnother = (before: GoalPayload, now: GoalPayload): boolean =>
  now.uid !== before.uid ||
  now.revision < before.revision ||
  (now.revision === before.revision && now.templateHash !== before.templateHash)

/**
 * What was reported, granted and halted under the numbers so far says nothing about the same numbers from now on. Grants
 * go on holding budget, as those of earlier revisions do. Indexes: PRIMARY of goal and machine_goal.
 */
async function forgetNumbers(sql: Sql, { namespace, name }: GoalPayload): Promise<void> {
  for (const change of [
    'goal SET halted_revision = NULL',
    'machine_goal SET revision = 0, grant_revision = grant_revision - 1000000',
  ])
    await sql.execute(`UPDATE ${change} WHERE namespace = ? AND name = ?`, [namespace, name])
}

/** A goal selects machines that serve its namespace and have all its labels. */
export function selects(
  goal: { namespace: string; selector: MachineSelector },
  { labels, namespaces }: Machine,
): boolean {
  const matches = Object.entries(goal.selector.matchLabels).every(([key, value]) => labels[key] === value)
  return matches && namespaces.includes(goal.namespace)
}

/** Brings `machine_goal` in line with the selector: rows for those selected, none for others. Index: PRIMARY. */
async function selectMachines(sql: Sql, payload: GoalPayload, machines: Machine[]): Promise<void> {
  const { namespace, name } = payload
  const selected = machines.filter((machine) => selects(payload, machine)).map((machine) => machine.name)
  const rest = machines.filter((machine) => !selects(payload, machine)).map((machine) => machine.name)
  if (selected.length > 0)
    await sql.execute('INSERT IGNORE INTO machine_goal (namespace, name, machine) VALUES ?', [
      selected.map((machine) => [namespace, name, machine]),
    ])
  await deselectMachines(sql, payload, rest)
}

/** With what they were granted. Index: PRIMARY. */
async function deselectMachines(sql: Sql, goal: GoalName, machines: string[]): Promise<void> {
  if (machines.length === 0) return
  await sql.execute('DELETE FROM machine_goal WHERE namespace = ? AND name = ? AND machine IN (?)', [
    ...[goal.namespace, goal.name, machines],
  ])
}
