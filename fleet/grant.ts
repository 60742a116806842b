import { randomBytes } from 'node:crypto'
import type { Grant } from '../api/fleetApi.ts'
import { durationMs } from '../api/meta.ts'
import type { GoalPayload } from '../rollout/envelope.ts'
import { mayActivate } from '../rollout/grant.ts'
import { Batch } from '../runtime/batch.ts'
import type { Database, Sql } from '../runtime/sql.ts'
import { countMachines, type GoalAt, type Listening, reportSlackMs } from './counts.ts'
import { nowMs } from './machines.ts'

export interface GrantOptions {
  /** How soon a grant must be begun. */
  beginWithinMs: number
  listening: Listening
}

export type TrustedGoal = GoalPayload & GoalAt

/** Machines of one transaction. */
const maxBatch = 1000

/**
 * Grants in batches: counting the machines of a goal takes as long for one that asks as for a thousand, and its row is
 * locked meanwhile.
 */
export class Granter {
  readonly #database: Database
  readonly #batches = new Map<string, { sequence: number; trusted: boolean; batch: Batch<string, Grant | undefined> }>()

  constructor(database: Database) {
    this.#database = database
  }

  /** As `grantActivations`, for one machine; `options` are asked for when its turn comes. */
  ask(goal: TrustedGoal, machine: string, options: () => GrantOptions): Promise<Grant | undefined> {
    const key = `${goal.namespace}/${goal.name}`
    const known = this.#batches.get(key)
    if (known?.sequence === goal.sequence && known.trusted === goal.trusted) return known.batch.call(machine)
    const batch = new Batch(async (machines: string[]) => {
      const grants = await grantActivations(this.#database, goal, machines, options())
      return machines.map((each) => grants.get(each))
    }, maxBatch)
    this.#batches.set(key, { sequence: goal.sequence, trusted: goal.trusted, batch })
    return batch.call(machine)
  }
}

/**
 * Permission for machines to activate the goal's revision, for as many of them as it is the turn of. One transaction that
 * locks the goal's row, so any replica may run it: target, budget and halts are exact however many ask at once.
 */
export async function grantActivations(
  database: Database,
  goal: TrustedGoal,
  machines: string[],
  options: GrantOptions,
): Promise<Map<string, Grant>> {
  const grants = new Map<string, Grant>()
  // The index that allowed it is no longer fresh.
  if (options.beginWithinMs <= 0) return grants
  return database.transaction(
    async (sql) => {
      const { namespace, name, revision } = goal
      grants.clear()
      const [row] = await sql.query<{
        sequence: number
        haltedRevision: number | null
        withdrawn: number
        nowMs: number
      }>(
        // Index: PRIMARY.
        `SELECT sequence, halted_revision AS haltedRevision, withdrawn, ${nowMs} AS nowMs FROM goal
         WHERE namespace = ? AND name = ? FOR UPDATE`,
        [namespace, name],
      )
      const current =
        row?.sequence === goal.sequence && !row.withdrawn && (goal.trusted || row.haltedRevision !== revision)
      if (!current || goal.halted) return grants
      const waiting = await waitingMachines(sql, goal, machines)
      // Who holds a grant already may ask again, the answer may have been lost. A longer time is not begun anew.
      const before = await grantsOf(sql, goal, [...waiting.keys()])
      for (const { machine, open, ...grant } of before) {
        if (!open) continue
        waiting.delete(machine)
        if (grant.leftMs > 0) grants.set(machine, again(goal, grant, options))
      }
      const over = before.filter(({ open }) => !open).map(({ id }) => id)
      if (over.length > 0) await sql.execute('DELETE FROM activation_grant WHERE id IN (?)', [over])
      if (waiting.size === 0) return grants
      const counts = await countMachines(sql, goal, options.listening)
      const given: [machine: string, Grant][] = []
      for (const [machine, running] of waiting) {
        // A machine that runs nothing can't be made less available.
        const answer = mayActivate(goal, counts, { serves: running !== null })
        if (answer === 'Halts') {
          await sql.execute('UPDATE goal SET halted_revision = ? WHERE namespace = ? AND name = ?', [
            ...[revision, namespace, name],
          ])
          return grants
        }
        if (answer === 'No') continue
        counts.updatedOrGranted++
        counts.unavailable++
        given.push([machine, newGrant(goal, options)])
      }
      await insert(sql, goal, given, row.nowMs)
      for (const [machine, grant] of given) grants.set(machine, grant)
      return grants
    },
    { idempotent: true },
  )
}

/** Of these, those that have the release and don't run it, with what they run. Index: PRIMARY. */
async function waitingMachines(sql: Sql, { namespace, name, templateHash }: GoalPayload, machines: string[]) {
  const rows = await sql.query<{ machine: string; state: string; template: string; running: string | null }>(
    `SELECT machine, state, template, running FROM machine_goal
     WHERE namespace = ? AND name = ? AND machine IN (?)`,
    [namespace, name, machines],
  )
  const waits = rows.filter(
    ({ state, template, running }) => state === 'Fetched' && template === templateHash && running !== templateHash,
  )
  return new Map(waits.map(({ machine, running }) => [machine, running]))
}

/** The grants these machines have of the revision already, whether or not still open. Index: by_machine. */
async function grantsOf(sql: Sql, { namespace, name, revision }: GoalPayload, machines: string[]) {
  if (machines.length === 0) return []
  return sql.query<{ machine: string; id: string; leftMs: number; open: number }>(
    `SELECT machine, id, begin_by_ms - ${nowMs} AS leftMs,
       IF(begun, ends_at_ms, begin_by_ms + ${reportSlackMs}) > ${nowMs} AS open
     FROM activation_grant WHERE namespace = ? AND name = ? AND machine IN (?) AND revision = ?`,
    [namespace, name, machines, revision],
  )
}

const newGrant = (goal: GoalPayload, { beginWithinMs }: GrantOptions): Grant => ({
  id: randomBytes(16).toString('hex'),
  ...identityOf(goal),
  beginWithinMs,
})

/** An open grant given once more, sequence and time as they are now. */
const again = (
  goal: GoalPayload,
  { id, leftMs }: { id: string; leftMs: number },
  { beginWithinMs }: GrantOptions,
): Grant => ({ id, ...identityOf(goal), beginWithinMs: Math.min(leftMs, beginWithinMs) })

const identityOf = ({ namespace, name, sequence, revision, templateHash: template }: GoalPayload) => ({
  ...{ namespace, name, sequence, revision, template },
})

async function insert(sql: Sql, goal: GoalPayload, given: [string, Grant][], grantedMs: number): Promise<void> {
  if (given.length === 0) return
  const { deadline, stop } = goal.template.activation
  // Stopping, starting, and going back when that fails.
  const takesMs = 2 * durationMs(stop.timeout) + 2 * durationMs(deadline) + reportSlackMs
  await sql.execute(
    `INSERT INTO activation_grant (id, namespace, name, machine, sequence, revision, template, granted_at_ms, begin_by_ms,
       ends_at_ms) VALUES ?`,
    [
      given.map(([machine, { id, namespace, name, sequence, revision, template, beginWithinMs }]) => [
        ...[id, namespace, name, machine, sequence, revision, template],
        ...[grantedMs, grantedMs + beginWithinMs, grantedMs + beginWithinMs + takesMs],
      ]),
    ],
  )
}
