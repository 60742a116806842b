import { randomBytes } from 'node:crypto'
import type { Grant } from '../api/fleetApi.ts'
import { durationMs, resolveCount } from '../api/meta.ts'
import type { GoalPayload } from '../rollout/envelope.ts'
import { targetCount } from '../rollout/plan.ts'
import type { Database, Sql } from '../runtime/sql.ts'
import { type Counted, countMachines, reportSlackMs } from './counts.ts'
import { nowMs } from './machines.ts'

export interface GrantOptions {
  /** How soon a grant must be begun. */
  beginWithinMs: number
  unreachableMs: number
}

/** Few machines say nothing about a share: until so many are updated, any failure halts. */
const smallRollout = 50

/**
 * Permission for a machine to activate the goal's revision; undefined when it is not its turn. One transaction that
 * locks the goal's row, so any replica may run it: target, budget and halts are exact however many ask at once.
 */
export async function grantActivation(
  database: Database,
  goal: GoalPayload,
  machine: string,
  options: GrantOptions,
): Promise<Grant | undefined> {
  return database.transaction(
    async (sql) => {
      const { namespace, name, revision } = goal
      const [row] = await sql.query<{ sequence: number; haltedRevision: number | null; withdrawn: number }>(
        // Index: PRIMARY.
        `SELECT sequence, halted_revision AS haltedRevision, withdrawn FROM goal
         WHERE namespace = ? AND name = ? FOR UPDATE`,
        [namespace, name],
      )
      const current = row?.sequence === goal.sequence && !row.withdrawn && row.haltedRevision !== revision
      if (!current || goal.halted) return undefined
      const [own] = await sql.query<{ state: string; template: string; running: string | null }>(
        'SELECT state, template, running FROM machine_goal WHERE namespace = ? AND name = ? AND machine = ?',
        [namespace, name, machine],
      )
      const waits = own?.state === 'Fetched' && own.template === goal.templateHash && own.running !== goal.templateHash
      if (!waits) return undefined
      // It holds its budget already: asked again, the answer may have been lost. A longer time is not begun anew.
      const before = await ownGrant(sql, goal, machine)
      if (before?.open) return again(goal, before, options)
      if (before) await sql.execute('DELETE FROM activation_grant WHERE id = ?', [before.id])
      const counts = await countMachines(sql, goal, options.unreachableMs)
      if (await halts(sql, goal, counts)) return undefined
      if (counts.updatedOrGranted >= targetCount(goal.target, counts.desired)) return undefined
      // A machine that runs nothing can't be made less available.
      const budget = Math.max(1, resolveCount(goal.maxUnavailable, counts.desired))
      if (own.running !== null && counts.unavailable >= budget) return undefined
      return insert(sql, goal, machine, options)
    },
    { idempotent: true },
  )
}

/** The region halts a revision by itself when more machines failed than may. */
async function halts(sql: Sql, goal: GoalPayload, { failed, updated, desired }: Counted): Promise<boolean> {
  const allowed = updated < smallRollout ? 0 : resolveCount(goal.failureThreshold, desired)
  if (failed <= allowed || goal.rollback) return false
  await sql.execute('UPDATE goal SET halted_revision = ? WHERE namespace = ? AND name = ?', [
    goal.revision,
    goal.namespace,
    goal.name,
  ])
  return true
}

/** An open grant given once more, sequence and time as they are now; none when its time to begin is over. */
function again(
  goal: GoalPayload,
  before: { id: string; leftMs: number },
  { beginWithinMs }: GrantOptions,
): Grant | undefined {
  if (before.leftMs <= 0) return undefined
  const { namespace, name, sequence, revision, templateHash: template } = goal
  return {
    id: before.id,
    namespace,
    name,
    sequence,
    revision,
    template,
    beginWithinMs: Math.min(before.leftMs, beginWithinMs),
  }
}

/** The grant this machine has of the revision already, whether or not it is still open. Index: by_machine. */
async function ownGrant(sql: Sql, { namespace, name, revision }: GoalPayload, machine: string) {
  const [row] = await sql.query<{ id: string; leftMs: number; open: number }>(
    `SELECT id, begin_by_ms - ${nowMs} AS leftMs,
       NOT done AND IF(begun, ends_at_ms, begin_by_ms + ${reportSlackMs}) > ${nowMs} AS open
     FROM activation_grant WHERE namespace = ? AND name = ? AND machine = ? AND revision = ?`,
    [namespace, name, machine, revision],
  )
  return row
}

async function insert(sql: Sql, goal: GoalPayload, machine: string, { beginWithinMs }: GrantOptions): Promise<Grant> {
  const { namespace, name, sequence, revision, templateHash: template } = goal
  const id = randomBytes(16).toString('hex')
  const { deadline, stop } = goal.template.activation
  // Stopping, starting, and going back when that fails.
  const takesMs = 2 * durationMs(stop.timeout) + 2 * durationMs(deadline) + reportSlackMs
  await sql.execute(
    `INSERT INTO activation_grant (id, namespace, name, machine, sequence, revision, template, granted_at_ms, begin_by_ms,
       ends_at_ms) VALUES (?, ?, ?, ?, ?, ?, ?, ${nowMs}, ${nowMs} + ?, ${nowMs} + ?)`,
    [id, namespace, name, machine, sequence, revision, template, beginWithinMs, beginWithinMs + takesMs],
  )
  return { id, namespace, name, sequence, revision, template, beginWithinMs }
}
