import type { MachineCounts, MachineFailure } from '../api/goalState.ts'
import { judgeSilence, latelyMs } from '../rollout/silence.ts'
import type { Sql } from '../runtime/sql.ts'
import { nowMs } from './machines.ts'

export interface GoalAt {
  namespace: string
  name: string
  revision: number
  templateHash: string
  /** It is gone back to, or every wave was complete. */
  trusted: boolean
}

export interface Counted extends MachineCounts {
  /** Machines that an open grant or a failed activation keeps from serving. */
  unavailable: number
  /** Machines that run the template, may begin to, or may have begun to and did not come back. */
  updatedOrGranted: number
  /** The highest that a machine says it has. */
  highestSequence: number
  /** So many fell silent at once that nothing is known of the release; never under one that is trusted. */
  manySilent: boolean
}

/** A grant that was never reported is over when it was not begun by then, plus the time a report takes. */
export const reportSlackMs = 15_000
const isOpen = `(g.id IS NOT NULL AND IF(g.begun, g.ends_at_ms, g.begin_by_ms + ${reportSlackMs}) > ${nowMs})`
/** Its time is over, and it is not known how it ended, or whether it began: the machine may be down in the middle of it. */
const isUnresolved = `(g.id IS NOT NULL AND NOT ${isOpen} AND (g.begun OR m.last_seen_ms < g.begin_by_ms))`
/** Says so itself. */
const saysFailed = "(mg.state IN ('Failed', 'RolledBack') AND mg.template = ? AND mg.revision = ?)"
const saysHealthy = "(mg.running <=> ? AND mg.template = ? AND mg.state = 'Healthy')"
const isDown = "mg.state IN ('Activating', 'Failed')"
const isSilent = `m.last_seen_ms <= ${nowMs} - ?`
/** All machines are looked at, few are silent. Index: PRIMARY of machine_goal. */
const fromSilent = `FROM machine m STRAIGHT_JOIN machine_goal mg
  ON mg.namespace = ? AND mg.name = ? AND mg.machine = m.name WHERE ${isSilent}`
/** It runs the template, and has heard of this revision: it was there during this rollout. */
const hasChanged = '(mg.running <=> ? AND mg.revision = ?)'

/** How long the server that looks has been up, as far as machines are judged by what it heard. */
export interface Listening {
  /** One that is silent for longer is unreachable; infinite while the server is young. */
  silentMs: number
  /** Since when it listens, while it is young; undefined later. */
  upMs: number | undefined
}

/**
 * The machines a goal selects, by what they reported of it. Who does not come back from an activation costs budget; not
 * under a template that is trusted: going back must not wait for it. What an earlier revision allowed a machine counts too:
 * it may not have heard of this one yet. So does, for a young server, every machine that it has not heard yet: a database
 * may have been put back as it was before some were granted. Who fell silent before it was allowed to change is
 * unreachable, who did after it has failed, as far as rollout/silence.ts says so.
 *
 * Three looks, at grants, at silent machines, and at all: together a quarter of what one look at all of it in all rows
 * takes. Grants first: who reports in between is counted twice rather than not at all.
 */
export async function countMachines(sql: Sql, goal: GoalAt, listening: Listening): Promise<Counted> {
  const { silentMs } = listening
  const { namespace, name, revision, templateHash, trusted } = goal
  const at = [namespace, name]
  const own = [templateHash, revision]
  const granted = await sums(
    sql,
    // Indexes: by_machine of activation_grant, PRIMARY of machine_goal and machine.
    `SELECT SUM((open OR (unresolved AND NOT ?)) AND NOT down) AS unavailable, SUM(allowed AND NOT updated) AS allowed,
       SUM(silent AND openOwn AND NOT spoke) AS waitedFor, SUM(silent AND unresolvedOwn AND NOT spoke) AS lost
     FROM (SELECT MAX(${isOpen}) AS open, MAX(${isUnresolved}) AS unresolved,
         MAX(g.template = ? AND (${isOpen} OR ${isUnresolved})) AS allowed,
         MAX(g.revision = ? AND ${isOpen}) AS openOwn, MAX(g.revision = ? AND ${isUnresolved}) AS unresolvedOwn,
         MAX(${isDown}) AS down, MAX(mg.running <=> ?) AS updated, MAX(${saysFailed} OR ${hasChanged}) AS spoke,
         MAX(${isSilent}) AS silent
       FROM activation_grant g
         JOIN machine_goal mg ON mg.namespace = g.namespace AND mg.name = g.name AND mg.machine = g.machine
         JOIN machine m ON m.name = g.machine
       WHERE g.namespace = ? AND g.name = ? GROUP BY g.machine) AS each_machine`,
    [...[trusted, templateHash, revision, revision, templateHash, ...own, ...own], ...[silentMs, ...at]],
  )
  const silent = await sums(
    sql,
    `SELECT COUNT(*) AS machines, SUM(${saysFailed}) AS failed, SUM(${saysHealthy}) AS healthy,
       SUM(${hasChanged} AND NOT ${saysFailed}) AS hasChanged, SUM(NOT ${isSilent}) AS lately
     ${fromSilent}`,
    [...own, templateHash, templateHash, ...own, ...own, silentMs + latelyMs, ...at, silentMs],
  )
  const all = await sums(
    sql,
    // Index: PRIMARY.
    `SELECT COUNT(*) AS machines,
       SUM(mg.running <=> ? OR (mg.template = ? AND mg.state NOT IN ('Waiting', 'Fetching'))) AS fetched,
       SUM(mg.running <=> ?) AS updated, SUM(${saysHealthy}) AS healthy, SUM(${saysFailed}) AS failed,
       SUM(${isDown}) AS down, MAX(mg.sequence) AS highestSequence
     FROM machine_goal mg WHERE mg.namespace = ? AND mg.name = ?`,
    [templateHash, templateHash, templateHash, templateHash, templateHash, ...own, ...at],
  )
  const unheard = await unheardMachines(sql, goal, listening)
  const changed = { machines: all('updated') + granted('lost'), silent: silent('hasChanged') + granted('lost') }
  const waitedFor = granted('waitedFor')
  const others = silent('machines') - silent('failed') - changed.silent - waitedFor
  const unchanged = { machines: all('machines') - changed.machines, silent: Math.max(0, others) }
  const judged = judgeSilence({ changed, unchanged, lately: silent('lately') })
  // Who falls silent under what is known to work is only out of reach.
  const failed = trusted ? 0 : judged.failed
  return {
    desired: all('machines'),
    fetched: all('fetched'),
    updated: all('updated'),
    healthy: Math.max(0, all('healthy') - silent('healthy')),
    failed: all('failed') + failed,
    unreachable: unchanged.silent + changed.silent - failed,
    unavailable: all('down') + granted('unavailable') + unheard.machines,
    updatedOrGranted: all('updated') + granted('allowed') + unheard.notUpdated,
    highestSequence: all('highestSequence'),
    manySilent: judged.many && !trusted,
  }
}

/** Those that a young server has not heard yet: they may be doing anything. */
async function unheardMachines(sql: Sql, { namespace, name, templateHash }: GoalAt, { upMs }: Listening) {
  if (upMs === undefined) return { machines: 0, notUpdated: 0 }
  const unheard = await sums(
    sql,
    `SELECT COUNT(*) AS machines, SUM(NOT mg.running <=> ?) AS notUpdated
     ${fromSilent}`,
    [templateHash, namespace, name, upMs],
  )
  return { machines: unheard('machines'), notUpdated: unheard('notUpdated') }
}

/** The one row of a query, as numbers; a sum over nothing is 0. */
async function sums(sql: Sql, statement: string, values: (string | number | boolean)[]) {
  const [row] = await sql.query<Record<string, number | null>>(statement, values)
  return (column: string): number => Number(row?.[column] ?? 0)
}

/** The first ten machines that failed, and why. Indexes: PRIMARY of machine_goal and machine, by_machine. */
export async function listFailures(sql: Sql, goal: GoalAt, { silentMs }: Listening): Promise<MachineFailure[]> {
  const { namespace, name, revision, templateHash } = goal
  const found = await sql.query<{ machine: string; reason: string | null; message: string | null }>(
    `SELECT mg.machine, mg.reason, mg.message FROM machine_goal mg
       JOIN machine m ON m.name = mg.machine
       LEFT JOIN activation_grant g ON g.namespace = mg.namespace AND g.name = mg.name AND g.machine = mg.machine
         AND g.revision = ?
     WHERE mg.namespace = ? AND mg.name = ?
       AND (${saysFailed} OR (${isSilent} AND (${isUnresolved} OR ${hasChanged})))
     ORDER BY mg.machine LIMIT 10`,
    [revision, namespace, name, templateHash, revision, silentMs, templateHash, revision],
  )
  return found.map(({ machine, reason, message }) => ({
    machine,
    reason: reason ?? 'Unreachable',
    message: message ?? 'not heard of since it was allowed to activate',
  }))
}
