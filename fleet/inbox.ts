import { isDeepStrictEqual } from 'node:util'
import type { GoalReport, PollRequest } from '../api/fleetApi.ts'
import { Batch } from '../runtime/batch.ts'
import type { Database } from '../runtime/sql.ts'
import { find, type GoalName, type Goals, isOf, keyOf } from './goals.ts'
import { type Machine, type MachineRow, noGrant, nowMs } from './machines.ts'

/** Machines of one batch. */
const maxBatch = 500
/** A poll may take so much longer: twenty that come together are written for the price of two. */
const gatherMs = 10
/** `last_seen` is written so often at most. */
const seenEveryMs = 1000

interface Said {
  machine: Machine
  poll: PollRequest
}

type Known = MachineRow & { agentVersion: string; silentMs: number | null }

/** A row of machine_goal. */
interface Reported extends GoalName {
  machine: string
  state: string
  sequence: number
  revision: number
  template: string
  running: string | null
  reason: string | null
  message: string | null
  fetchMs: number | null
}

/** The same, with what the machine was granted. */
type Granted = Reported & { grantId: string | null; grantRevision: number | null; begun: number }

/**
 * What machines say when they poll, written down as far as it is new: two looks and few writes for all that poll at the
 * same time. The rows are the truth, so that any replica may hear any machine.
 */
export class Inbox {
  readonly #database: Database
  readonly #goals: Goals
  readonly #batch: Batch<Said, undefined>

  constructor(database: Database, goals: Goals) {
    this.#database = database
    this.#goals = goals
    this.#batch = new Batch((said) => this.#takeAll(said), maxBatch, gatherMs)
  }

  take(machine: Machine, poll: PollRequest): Promise<undefined> {
    return this.#batch.call({ machine, poll })
  }

  async #takeAll(said: Said[]): Promise<undefined[]> {
    // Who polled twice is heard as it spoke last.
    const last = new Map(said.map((each) => [each.machine.name, each]))
    await this.#noteMachines(last)
    await this.#noteReports(last)
    return said.map(() => undefined)
  }

  async #noteMachines(said: Map<string, Said>): Promise<void> {
    const names = [...said.keys()].sort()
    const rows = await this.#database.query<Known>(
      // Index: PRIMARY.
      `SELECT name, labels, namespaces, agent_version AS agentVersion, ${nowMs} - last_seen_ms AS silentMs
       FROM machine WHERE name IN (?)`,
      [names],
    )
    const known = new Map(rows.map((row) => [row.name, row]))
    const fresh = names.flatMap((name) => {
      const each = said.get(name)
      return each && !isKnown(known.get(name), each) ? [each] : []
    })
    if (fresh.length > 0)
      await this.#database.execute(
        `INSERT INTO machine (name, labels, namespaces, agent_version) VALUES ?
         ON DUPLICATE KEY UPDATE labels = VALUES(labels), namespaces = VALUES(namespaces),
           agent_version = VALUES(agent_version)`,
        [
          fresh.map(({ machine: { name, labels, namespaces }, poll }) => [
            ...[name, JSON.stringify(labels), JSON.stringify(namespaces), poll.agentVersion],
          ]),
        ],
      )
    const due = names.filter((name) => (known.get(name)?.silentMs ?? Number.POSITIVE_INFINITY) > seenEveryMs)
    if (due.length > 0)
      await this.#database.execute(`UPDATE machine SET last_seen_ms = ${nowMs} WHERE name IN (?)`, [due])
  }

  async #noteReports(said: Map<string, Said>): Promise<void> {
    const names = [...said.keys()]
    const rows = await this.#database.query<Granted>(
      // Index: by_machine.
      `SELECT namespace, name, machine, state, sequence, revision, template, running, reason, message,
         fetch_ms AS fetchMs, grant_id AS grantId, grant_revision AS grantRevision, grant_begun AS begun
       FROM machine_goal WHERE machine IN (?)`,
      [names],
    )
    const before = Map.groupBy(rows, ({ machine }) => machine)
    const changed: Reported[] = []
    const unselected: Reported[] = []
    const begun: string[] = []
    const over: string[] = []
    for (const [name, { machine, poll }] of said) {
      const selecting = this.#goals.selecting(machine)
      const known = before.get(name) ?? []
      for (const row of known) {
        const report = find(poll.goals, row)
        // A goal that is not offered here may be a newer one, or withdrawn.
        if (!selecting.some(({ payload }) => isOf(row, payload)) && this.#goals.offered.has(keyOf(row)))
          unselected.push(row)
        else if (report && !isAsBefore(row, report)) changed.push(asRow(name, report, row))
        if (!report || row.grantId === null) continue
        if (isOver(row, report)) over.push(row.grantId)
        else if (report.grantId === row.grantId && report.state === 'Activating' && !row.begun) begun.push(row.grantId)
      }
      for (const { payload } of selecting) {
        if (find(known, payload)) continue
        const report = find(poll.goals, payload)
        changed.push(report ? asRow(name, report) : notHeardOf(name, payload))
      }
    }
    await this.#write(changed)
    // After what the machine said is written: until then its grant counts.
    for (const [change, ids] of [
      ['grant_begun = TRUE', begun],
      [noGrant, over],
    ] as const)
      if (ids.length > 0)
        await this.#database.execute(
          // Index: by_machine.
          `UPDATE machine_goal SET ${change} WHERE machine IN (?) AND grant_id IN (?)`,
          [names, ids],
        )
    for (const { namespace, name, machine } of unselected) await this.#goals.deselect({ namespace, name }, [machine])
  }

  async #write(rows: Reported[]): Promise<void> {
    if (rows.length === 0) return
    // In one order, so that replicas don't wait for each other.
    rows.sort((a, b) => (`${keyOf(a)}/${a.machine}` < `${keyOf(b)}/${b.machine}` ? -1 : 1))
    await this.#database.execute(
      `INSERT INTO machine_goal (namespace, name, machine, state, sequence, revision, template, running, reason, message,
         fetch_ms) VALUES ?
       ON DUPLICATE KEY UPDATE state = VALUES(state), sequence = VALUES(sequence), revision = VALUES(revision),
         template = VALUES(template), running = VALUES(running), reason = VALUES(reason), message = VALUES(message),
         fetch_ms = VALUES(fetch_ms)`,
      [
        rows.map((row) => [
          ...[row.namespace, row.name, row.machine, row.state, row.sequence, row.revision, row.template, row.running],
          ...[row.reason, row.message, row.fetchMs],
        ]),
      ],
    )
  }
}

function isKnown(known: Known | undefined, { machine, poll }: Said): boolean {
  if (!known || known.silentMs === null || known.agentVersion !== poll.agentVersion) return false
  return isSame(known.labels, machine.labels) && isSame(known.namespaces, machine.namespaces)
}

/** One server gives JSON back as it was written, the other with its own spaces and order. */
const isSame = (stored: string, given: unknown): boolean =>
  stored === JSON.stringify(given) || isDeepStrictEqual(JSON.parse(stored), given)

const isAsBefore = (row: Reported, report: GoalReport): boolean =>
  row.state === report.state &&
  row.sequence === report.sequence &&
  row.revision === report.revision &&
  row.template === report.template &&
  row.running === (report.running ?? null) &&
  row.reason === (report.reason ?? null) &&
  row.message === (report.message ?? null) &&
  row.fetchMs === fetchMsOf(report, row)

/** What it once said of a release it took counts as long as it has that one. */
const fetchMsOf = (report: GoalReport, before?: Reported): number | null =>
  report.fetchMs ?? (before?.template === report.template ? before.fetchMs : null)

const asRow = (machine: string, report: GoalReport, before?: Reported): Reported => ({
  ...{ namespace: report.namespace, name: report.name, machine, state: report.state, sequence: report.sequence },
  ...{ revision: report.revision, template: report.template, running: report.running ?? null },
  ...{ reason: report.reason ?? null, message: report.message ?? null, fetchMs: fetchMsOf(report, before) },
})

/** It is selected, and did not say anything of it yet. */
const notHeardOf = (machine: string, { namespace, name }: GoalName): Reported => ({
  ...{ namespace, name, machine, state: 'Waiting', sequence: 0, revision: 0, template: '' },
  ...{ running: null, reason: null, message: null, fetchMs: null },
})

/** How it ended was said, or the machine holds a later revision and activates nothing. */
function isOver({ grantId, grantRevision }: Granted, report: GoalReport): boolean {
  if (report.state === 'Activating') return false
  const ended = report.state === 'Healthy' || report.state === 'Failed' || report.state === 'RolledBack'
  return (ended && report.grantId === grantId) || (grantRevision ?? 0) < report.revision
}
