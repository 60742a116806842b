import { randomBytes } from 'node:crypto'
import type { Grant } from '../api/fleetApi.ts'
import { durationMs } from '../api/meta.ts'
import type { GoalPayload } from '../rollout/envelope.ts'
import { mayActivate } from '../rollout/grant.ts'
import { Batch } from '../runtime/batch.ts'
import type { Database, Sql } from '../runtime/sql.ts'
import { countMachines, type GoalAt, isOpen, type Listening, reportSlackMs } from './counts.ts'
import { noGrant, nowMs } from './machines.ts'

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
      const waiting = new Map<string, { serves: boolean }>()
      const over: string[] = []
      for (const { machine, running, id, open, leftMs } of await waitingMachines(sql, goal, machines)) {
        // Who holds a grant already may ask again, the answer may have been lost. A longer time is not begun anew.
        if (id !== null && open && leftMs > 0) grants.set(machine, again(goal, { id, leftMs }, options))
        if (id !== null && open) continue
        if (id !== null) over.push(machine)
        // A machine that runs nothing can't be made less available.
        waiting.set(machine, { serves: running !== null })
      }
      if (over.length > 0)
        await sql.execute(`UPDATE machine_goal SET ${noGrant} WHERE namespace = ? AND name = ? AND machine IN (?)`, [
          ...[namespace, name, over],
        ])
      if (waiting.size === 0) return grants
      const counts = await countMachines(sql, goal, options.listening)
      const given: [machine: string, Grant][] = []
      for (const [machine, at] of waiting) {
        const answer = mayActivate(goal, counts, at)
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
      await write(sql, goal, given, row.nowMs)
      for (const [machine, grant] of given) grants.set(machine, grant)
      return grants
    },
    { idempotent: true },
  )
}

interface WaitingMachine {
  machine: string
  running: string | null
  /** The grant it has of the revision already. */
  id: string | null
  leftMs: number
  open: number
}

/**
 * Of these, those that have the release and don't run it. Locked, so that one deselected meanwhile does not come back by
 * what is granted. Index: PRIMARY.
 */
function waitingMachines(sql: Sql, goal: GoalPayload, machines: string[]): Promise<WaitingMachine[]> {
  const { namespace, name, revision, templateHash } = goal
  return sql.query<WaitingMachine>(
    `SELECT machine, running, IF(grant_revision = ?, grant_id, NULL) AS id, grant_begin_by_ms - ${nowMs} AS leftMs,
       ${isOpen(nowMs)} AS open
     FROM machine_goal AS mg
     WHERE namespace = ? AND name = ? AND machine IN (?) AND state = 'Fetched' AND template = ? AND NOT running <=> ?
     FOR UPDATE`,
    [revision, namespace, name, machines, templateHash, templateHash],
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

/** In place of one of an earlier revision: a machine that waits is not in the middle of any. Index: PRIMARY. */
async function write(sql: Sql, goal: GoalPayload, given: [string, Grant][], grantedMs: number): Promise<void> {
  if (given.length === 0) return
  const { deadline, stop } = goal.template.activation
  // Stopping, starting, and going back when that fails.
  const takesMs = 2 * durationMs(stop.timeout) + 2 * durationMs(deadline) + reportSlackMs
  await sql.execute(
    `INSERT INTO machine_goal (namespace, name, machine, grant_id, grant_revision, grant_template, grant_begin_by_ms,
       grant_ends_at_ms) VALUES ?
     ON DUPLICATE KEY UPDATE grant_id = VALUES(grant_id), grant_revision = VALUES(grant_revision),
       grant_template = VALUES(grant_template), grant_begin_by_ms = VALUES(grant_begin_by_ms),
       grant_ends_at_ms = VALUES(grant_ends_at_ms), grant_begun = FALSE`,
    [
      given.map(([machine, { id, namespace, name, revision, template, beginWithinMs }]) => [
        ...[namespace, name, machine, id, revision, template],
        ...[grantedMs + beginWithinMs, grantedMs + beginWithinMs + takesMs],
      ]),
    ],
  )
}
