import type { MachineFailure } from '../api/goalState.ts'
import { latelyMs } from '../rollout/silence.ts'
import { type Known, type Tally, tally } from '../rollout/tally.ts'
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

/** A grant that was never reported is over when it was not begun by then, plus the time a report takes. */
export const reportSlackMs = 15_000
/** The grant in a row `mg` of machine_goal; null without one. */
export const isOpen = (now: string): string =>
  `(IF(mg.grant_begun, mg.grant_ends_at_ms, mg.grant_begin_by_ms + ${reportSlackMs}) > ${now})`
/** Of one that is over: it is not known how it ended, or whether it began. The machine may be down in the middle of it. */
const isUnresolved = (lastSeen: string) => `(mg.grant_begun OR ${lastSeen} < mg.grant_begin_by_ms)`
const isSilent = (ms: number) => `m.last_seen_ms <= ${nowMs} - ${ms}`

/** How long the server that looks has been up, as far as machines are judged by what it heard. */
export interface Listening {
  /** One that is silent for longer is unreachable; infinite while the server is young. */
  silentMs: number
  /** Since when it listens, while it is young; undefined later. */
  upMs: number | undefined
}

/**
 * The machines a goal selects, counted by rollout/tally.ts. Two looks, at all machines, and at those that are quiet: a join
 * of all machines would take three times as long.
 */
export async function countMachines(
  sql: Sql,
  goal: GoalAt,
  { silentMs, upMs }: Listening,
): Promise<Tally & { highestSequence: number }> {
  const all = await look(sql, goal, {
    heard: "'Heard'",
    // Indexes: PRIMARY of machine_goal, and of machine for grants that were not begun in time.
    lastSeen: '(SELECT m.last_seen_ms FROM machine m WHERE m.name = mg.machine)',
    from: 'machine_goal mg WHERE mg.namespace = ? AND mg.name = ?',
  })
  const silent = `IF(${isSilent(silentMs + latelyMs)}, 'Silent', 'LatelySilent')`
  const quiet = await look(sql, goal, {
    heard: upMs === undefined ? silent : "'NotYet'",
    lastSeen: 'm.last_seen_ms',
    // All machines are looked at, few are quiet. Index: PRIMARY of machine_goal.
    from: `machine m STRAIGHT_JOIN machine_goal mg ON mg.namespace = ? AND mg.name = ? AND mg.machine = m.name
       WHERE ${isSilent(upMs ?? silentMs)}`,
  })
  const asHeard = quiet.map((each) => ({ ...each, machines: -each.machines, heard: 'Heard' as const }))
  return {
    ...tally([...all, ...asHeard, ...quiet], goal),
    highestSequence: Math.max(0, ...all.map(({ highestSequence }) => highestSequence)),
  }
}

type Group = Known & { highestSequence: number }
/** Small numbers are grouped faster than words. */
type Row = Omit<{ [Name in keyof Group]: Group[Name] extends boolean ? 0 | 1 | null : Group[Name] }, 'granted'> & {
  granted: 0 | 1 | 2
}

/** Machines in groups of whom the same is known. */
async function look(
  sql: Sql,
  { namespace, name, revision, templateHash }: GoalAt,
  { heard, lastSeen, from }: { heard: string; lastSeen: string; from: string },
): Promise<Group[]> {
  const rows = await sql.query<Row>(
    `SELECT COUNT(*) AS machines, MAX(mg.sequence) AS highestSequence, mg.state, mg.running <=> ? AS runs,
       mg.template = ? AS ofTemplate, mg.revision = ? AS ofRevision,
       CASE WHEN mg.grant_id IS NULL THEN 0 WHEN ${isOpen('clock.now_ms')} THEN 1
         WHEN ${isUnresolved(lastSeen)} THEN 2 ELSE 0 END AS granted,
       mg.grant_template = ? AS grantOfTemplate, mg.grant_revision = ? AS grantOfRevision, ${heard} AS heard
     FROM (SELECT ${nowMs} AS now_ms) AS clock JOIN ${from}
     GROUP BY state, runs, ofTemplate, ofRevision, granted, grantOfTemplate, grantOfRevision, heard`,
    [templateHash, templateHash, revision, templateHash, revision, namespace, name],
  )
  return rows.map((row) => ({
    ...row,
    granted: (['None', 'Open', 'Unresolved'] as const)[row.granted],
    ...{ runs: row.runs === 1, ofTemplate: row.ofTemplate === 1, ofRevision: row.ofRevision === 1 },
    ...{ grantOfTemplate: row.grantOfTemplate === 1, grantOfRevision: row.grantOfRevision === 1 },
  }))
}

/** The first ten machines that failed, and why. Indexes: PRIMARY of machine_goal and machine. */
export async function listFailures(sql: Sql, goal: GoalAt, { silentMs }: Listening): Promise<MachineFailure[]> {
  const { namespace, name, revision, templateHash } = goal
  const saysFailed = "(mg.state IN ('Failed', 'RolledBack') AND mg.template = ? AND mg.revision = ?)"
  const hasChanged = '(mg.running <=> ? AND mg.revision = ?)'
  const isLost = `mg.grant_revision <=> ? AND NOT ${isOpen(nowMs)} AND ${isUnresolved('m.last_seen_ms')}`
  const found = await sql.query<{ machine: string; reason: string | null; message: string | null }>(
    `SELECT mg.machine, mg.reason, mg.message FROM machine_goal mg JOIN machine m ON m.name = mg.machine
     WHERE mg.namespace = ? AND mg.name = ? AND (${saysFailed} OR (${isSilent(silentMs)} AND ((${isLost}) OR ${hasChanged})))
     ORDER BY mg.machine LIMIT 10`,
    [namespace, name, templateHash, revision, revision, templateHash, revision],
  )
  return found.map(({ machine, reason, message }) => ({
    machine,
    reason: reason ?? 'Unreachable',
    message: message ?? 'not heard of since it was allowed to activate',
  }))
}
