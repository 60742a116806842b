import { isDeepStrictEqual } from 'node:util'
import type { GoalReport } from '../api/fleetApi.ts'
import type { Database } from '../runtime/sql.ts'
import { nowMs } from './machines.ts'

interface Reported {
  namespace: string
  name: string
  state: string
  sequence: number
  revision: number
  template: string
  running: string | null
  reason: string | null
  message: string | null
  fetchMs: number | null
}

/** Writes down what a machine reports of its goals, as far as it is new. Indexes: by_machine, PRIMARY. */
export async function recordReports(database: Database, machine: string, reports: GoalReport[]): Promise<void> {
  if (reports.length === 0) return
  const known = await database.query<Reported>(
    `SELECT namespace, name, state, sequence, revision, template, running, reason, message, fetch_ms AS fetchMs
     FROM machine_goal
     WHERE machine = ?`,
    [machine],
  )
  for (const report of reports) {
    const before = known.find(({ namespace, name }) => namespace === report.namespace && name === report.name)
    // Of goals that don't select it a machine may say what it likes.
    if (!before) continue
    await endGrant(database, machine, report)
    if (report.state !== 'Activating' && (before.revision !== report.revision || before.state === 'Activating'))
      await endEarlierGrants(database, machine, report)
    const now: Reported = {
      namespace: report.namespace,
      name: report.name,
      state: report.state,
      sequence: report.sequence,
      revision: report.revision,
      template: report.template,
      running: report.running ?? null,
      reason: report.reason ?? null,
      message: report.message ?? null,
      fetchMs: report.fetchMs ?? (before.template === report.template ? before.fetchMs : null),
    }
    if (isDeepStrictEqual({ ...before }, now)) continue
    await database.execute(
      `UPDATE machine_goal SET state = ?, sequence = ?, revision = ?, template = ?, running = ?, reason = ?, message = ?, fetch_ms = ?,
         reported_at_ms = ${nowMs} WHERE namespace = ? AND name = ? AND machine = ?`,
      [
        now.state,
        now.sequence,
        now.revision,
        now.template,
        now.running,
        now.reason,
        now.message,
        now.fetchMs,
        now.namespace,
        now.name,
        machine,
      ],
    )
  }
}

/** It holds a later revision and activates nothing: what earlier ones allowed it is over. Index: by_machine. */
async function endEarlierGrants(database: Database, machine: string, report: GoalReport): Promise<void> {
  const { namespace, name, revision } = report
  await database.execute(
    `UPDATE activation_grant SET done = TRUE
     WHERE namespace = ? AND name = ? AND machine = ? AND revision < ? AND NOT done`,
    [namespace, name, machine, revision],
  )
}

/** A grant that is begun holds its budget until it is reported how it ended. Index: PRIMARY. */
async function endGrant(database: Database, machine: string, { grantId, state }: GoalReport): Promise<void> {
  if (grantId === undefined) return
  if (state === 'Activating')
    await database.execute('UPDATE activation_grant SET begun = TRUE WHERE id = ? AND machine = ? AND NOT begun', [
      grantId,
      machine,
    ])
  else if (state === 'Healthy' || state === 'Failed' || state === 'RolledBack')
    await database.execute(
      'UPDATE activation_grant SET begun = TRUE, done = TRUE WHERE id = ? AND machine = ? AND NOT done',
      [grantId, machine],
    )
}
