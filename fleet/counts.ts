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
const open = (grant: 'g' | 'other') =>
  `NOT ${grant}.done AND IF(${grant}.begun, ${grant}.ends_at_ms, ${grant}.begin_by_ms + ${reportSlackMs}) > ${nowMs}`
const isOpen = `(g.id IS NOT NULL AND ${open('g')})`
/** A machine may still act on what an earlier revision allowed it: it has not heard of this one yet. */
const isOpenForAnother = `EXISTS (SELECT 1 FROM activation_grant other WHERE other.namespace = mg.namespace
  AND other.name = mg.name AND other.machine = mg.machine AND ${open('other')})`
/** Its time is over and the machine has not been heard since it was given: it may have failed in the middle. */
const isLost = `(g.id IS NOT NULL AND NOT g.done AND NOT ${isOpen} AND m.last_seen_ms < g.begin_by_ms)`
const hasFailed = `((mg.state IN ('Failed', 'RolledBack') AND mg.template = ? AND mg.revision = ?) OR ${isLost})`

const rows = `machine_goal mg
  JOIN machine m ON m.name = mg.machine
  LEFT JOIN activation_grant g ON g.namespace = mg.namespace AND g.name = mg.name AND g.machine = mg.machine
    AND g.revision = ?
  WHERE mg.namespace = ? AND mg.name = ?`

/**
 * The machines a goal selects, by what they reported of it. `silentMs`: how long one must be silent to be unreachable.
 * Who was lost in an activation is down, and costs budget; not in a rollback, which must not wait for it.
 * Indexes: PRIMARY of machine_goal and machine, by_machine of activation_grant.
 */
export async function countMachines(sql: Sql, goal: GoalAt, silentMs: number): Promise<Counted> {
  const { namespace, name, revision, templateHash, rollback } = goal
  const [row] = await sql.query<Record<keyof Counted, number | null>>(
    `SELECT COUNT(*) AS desired,
       SUM(mg.running <=> ? OR (mg.template = ? AND mg.state NOT IN ('Waiting', 'Fetching'))) AS fetched,
       SUM(mg.running <=> ?) AS updated,
       SUM(mg.running <=> ? AND mg.template = ? AND mg.state = 'Healthy' AND m.last_seen_ms > ${nowMs} - ?) AS healthy,
       SUM(${hasFailed}) AS failed,
       SUM(m.last_seen_ms <= ${nowMs} - ? AND NOT ${hasFailed}) AS unreachable,
       SUM(${isOpen} OR mg.state IN ('Activating', 'Failed') OR (NOT ? AND ${isLost}) OR ${isOpenForAnother})
         AS unavailable,
       SUM(mg.running <=> ? OR ${isOpen}) AS updatedOrGranted
     FROM ${rows}`,
    [
      ...[templateHash, templateHash, templateHash, templateHash, templateHash, silentMs],
      ...[templateHash, revision, silentMs, templateHash, revision, rollback, templateHash],
      ...[revision, namespace, name],
    ],
  )
  const value = (key: keyof Counted) => Number(row?.[key] ?? 0)
  return {
    desired: value('desired'),
    fetched: value('fetched'),
    updated: value('updated'),
    healthy: value('healthy'),
    failed: value('failed'),
    unreachable: value('unreachable'),
    unavailable: value('unavailable'),
    updatedOrGranted: value('updatedOrGranted'),
  }
}

/** The first ten machines that failed, and why. Indexes as above. */
export async function listFailures(sql: Sql, goal: GoalAt): Promise<MachineFailure[]> {
  const { namespace, name, revision, templateHash } = goal
  const found = await sql.query<{ machine: string; reason: string | null; message: string | null }>(
    `SELECT mg.machine, mg.reason, mg.message FROM ${rows} AND ${hasFailed} ORDER BY mg.machine LIMIT 10`,
    [revision, namespace, name, templateHash, revision],
  )
  return found.map(({ machine, reason, message }) => ({
    machine,
    reason: reason ?? 'Unreachable',
    message: message ?? 'not heard of since it was allowed to activate',
  }))
}
