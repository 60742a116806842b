import type { MachineCounts, MachineFailure } from '../api/goalState.ts'
import type { Sql } from '../runtime/sql.ts'
import { nowMs } from './machines.ts'

export interface GoalAt {
  namespace: string
  name: string
  revision: number
  templateHash: string
  rollback: boolean
}

export interface Counted extends MachineCounts {
  /** Machines that an open grant or a failed activation keeps from serving. */
  unavailable: number
  /** Machines that run the template, or may begin to. */
  updatedOrGranted: number
}

/** A grant that was never reported is over when it was not begun by then, plus the time a report takes. */
export const reportSlackMs = 15_000
const isOpen = `(g.id IS NOT NULL AND NOT g.done AND
  IF(g.begun, g.ends_at_ms, g.begin_by_ms + ${reportSlackMs}) > ${nowMs})`
/** Its time is over and the machine has not been heard since it was given: it may have failed in the middle. */
const isLost = `(g.id IS NOT NULL AND NOT g.done AND NOT ${isOpen} AND m.last_seen_ms < g.begin_by_ms)`
/** Says so itself. */
const saysFailed = "(mg.state IN ('Failed', 'RolledBack') AND mg.template = ? AND mg.revision = ?)"
const saysHealthy = "(mg.running <=> ? AND mg.template = ? AND mg.state = 'Healthy')"
const isDown = "mg.state IN ('Activating', 'Failed')"

/**
 * The machines a goal selects, by what they reported of it. `silentMs`: how long one must be silent to be unreachable.
 * Who was lost in an activation is down, and costs budget; not in a rollback, which must not wait for it. What an earlier
 * revision allowed a machine counts too: it may not have heard of this one yet.
 *
 * Three looks, at grants that are not over, at silent machines, and at all: together a quarter of what one look at all of
 * it in all rows takes. Grants first: who reports in between is counted twice rather than not at all.
 */
export async function countMachines(sql: Sql, goal: GoalAt, silentMs: number): Promise<Counted> {
  const { namespace, name, revision, templateHash, rollback } = goal
  const at = [namespace, name]
  const failed = [templateHash, revision]
  const granted = await sums(
    sql,
    // Indexes: by_machine of activation_grant, PRIMARY of machine_goal and machine.
    `SELECT SUM((open OR (lost AND NOT ?)) AND NOT down) AS unavailable, SUM(openOwn AND NOT updated) AS allowed,
       SUM(lost AND NOT saysFailed) AS lost, SUM(lost AND NOT saysFailed AND silent) AS lostSilent
     FROM (SELECT MAX(${isOpen}) AS open, MAX(g.revision = ? AND ${isOpen}) AS openOwn,
         MAX(g.revision = ? AND ${isLost}) AS lost, MAX(${isDown}) AS down, MAX(mg.running <=> ?) AS updated,
         MAX(${saysFailed}) AS saysFailed, MAX(m.last_seen_ms <= ${nowMs} - ?) AS silent
       FROM activation_grant g
         JOIN machine_goal mg ON mg.namespace = g.namespace AND mg.name = g.name AND mg.machine = g.machine
         JOIN machine m ON m.name = g.machine
       WHERE g.namespace = ? AND g.name = ? AND NOT g.done GROUP BY g.machine) AS each_machine`,
    [rollback, revision, revision, templateHash, ...failed, silentMs, ...at],
  )
  const silent = await sums(
    sql,
    // All machines are looked at, few are silent. Index: PRIMARY of machine_goal.
    `SELECT COUNT(*) AS machines, SUM(${saysFailed}) AS failed, SUM(${saysHealthy}) AS healthy
     FROM machine m STRAIGHT_JOIN machine_goal mg ON mg.namespace = ? AND mg.name = ? AND mg.machine = m.name
     WHERE m.last_seen_ms <= ${nowMs} - ?`,
    [...failed, templateHash, templateHash, ...at, silentMs],
  )
  const all = await sums(
    sql,
    // Index: PRIMARY.
    `SELECT COUNT(*) AS machines,
       SUM(mg.running <=> ? OR (mg.template = ? AND mg.state NOT IN ('Waiting', 'Fetching'))) AS fetched,
       SUM(mg.running <=> ?) AS updated, SUM(${saysHealthy}) AS healthy, SUM(${saysFailed}) AS failed,
       SUM(${isDown}) AS down
     FROM machine_goal mg WHERE mg.namespace = ? AND mg.name = ?`,
    [templateHash, templateHash, templateHash, templateHash, templateHash, ...failed, ...at],
  )
  return {
    desired: all('machines'),
    fetched: all('fetched'),
    updated: all('updated'),
    healthy: Math.max(0, all('healthy') - silent('healthy')),
    failed: all('failed') + granted('lost'),
    unreachable: Math.max(0, silent('machines') - silent('failed') - granted('lostSilent')),
    unavailable: all('down') + granted('unavailable'),
    updatedOrGranted: all('updated') + granted('allowed'),
  }
}

/** The one row of a query, as numbers; a sum over nothing is 0. */
async function sums(sql: Sql, statement: string, values: (string | number | boolean)[]) {
  const [row] = await sql.query<Record<string, number | null>>(statement, values)
  return (column: string): number => Number(row?.[column] ?? 0)
}

/** The first ten machines that failed, and why. Indexes: PRIMARY of machine_goal and machine, by_machine. */
export async function listFailures(sql: Sql, goal: GoalAt): Promise<MachineFailure[]> {
  const { namespace, name, revision, templateHash } = goal
  const found = await sql.query<{ machine: string; reason: string | null; message: string | null }>(
    `SELECT mg.machine, mg.reason, mg.message FROM machine_goal mg
       JOIN machine m ON m.name = mg.machine
       LEFT JOIN activation_grant g ON g.namespace = mg.namespace AND g.name = mg.name AND g.machine = mg.machine
         AND g.revision = ?
     WHERE mg.namespace = ? AND mg.name = ? AND (${saysFailed} OR ${isLost}) ORDER BY mg.machine LIMIT 10`,
    [revision, namespace, name, templateHash, revision],
  )
  return found.map(({ machine, reason, message }) => ({
    machine,
    reason: reason ?? 'Unreachable',
    message: message ?? 'not heard of since it was allowed to activate',
  }))
}
