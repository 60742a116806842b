import type { MachineCounts } from '../../api/goalState.ts'
import { type IntOrPercent, resolveCount } from '../../api/meta.ts'
import type { Target } from '../../rollout/envelope.ts'
import { mayActivate } from '../../rollout/grant.ts'
import { targetCount } from '../../rollout/plan.ts'
import { latelyMs } from '../../rollout/silence.ts'
import { type Known, type Tally, tally } from '../../rollout/tally.ts'
import type { Hub } from './rolloutSimulation.ts'

const pollMs = 10_000
const mirrorMs = 3000
const indexLifetimeMs = 60_000
const beginWithinMs = 60_000
const unreachableMs = 60_000
const reportSlackMs = 15_000

/** What the hub tells a region. */
export interface Order {
  template: string
  revision: number
  previous: string | undefined
  target: Target
  rollback: boolean
  halted: boolean
  maxUnavailable: IntOrPercent
  failureThreshold: IntOrPercent
  sequence: number
}

export interface RegionStatus {
  revision: number
  sequence: number
  /** The highest that a machine says it has. */
  highest: number
  counts: MachineCounts
  halted: boolean
  manySilent: boolean
}

interface Grant {
  id: number
  template: string
  revision: number
  sequence: number
  /** As it was when it was given; a hub put back to before that may have lowered it since. */
  target: Target
  givenMs: number
  beginByMs: number
  endsAtMs: number
  begun: boolean
}

type State = 'Fetching' | 'Fetched' | 'Activating' | 'Healthy' | 'RolledBack'

interface Report {
  sequence: number
  state: State
  template: string
  revision: number
  running: string | undefined
  grantId: number | undefined
}

/** A machine, and what the region's database knows of it. */
interface Machine {
  running: string | undefined
  goal: Order | undefined
  has: Map<string, number>
  failed: { revision: number; template: string } | undefined
  /** The last it activated. */
  sequence: number
  activating:
    | { template: string; revision: number; grantId: number; givenMs: number; untilMs: number; lostPower: boolean }
    | undefined
  /** A grant that came and was not begun yet; `receivedMs` by its own clock. */
  waiting: { grant: Grant; receivedMs: number; beginAtMs: number } | undefined
  lastGrant: number | undefined
  downUntilMs: number
  pollAtMs: number
  row: { report: Report | undefined; seenMs: number }
  grant: Grant | undefined
  /** What it was granted is not known any more, until it is heard; who was granted before that may begin still. */
  forgottenUntilMs: number
  /** When it was heard again after it had been silent. */
  backAtMs: number
}

/** A region's fleet server and its machines; its rows outlive it. The decisions are rollout/'s own. */
export class Region {
  readonly name: string
  readonly machines: Machine[]
  #order: Order | undefined
  #haltedRevision = 0
  #indexIssuedAt = -1
  #indexSequence = -1
  #settled = false
  #freshAtMs = Number.NEGATIVE_INFINITY
  #downUntilMs = 0
  #cutUntilMs = 0
  #upSinceMs = 0
  #mirrorAtMs = 0
  #grantIds = 0
  readonly #older: Order[] = []
  readonly #backups: {
    order: Order | undefined
    halted: number
    rows: Pick<Machine, 'row' | 'grant'>[]
  }[] = []
  readonly #late: { atMs: number; status: RegionStatus }[] = []
  readonly #bad: ReadonlySet<string>
  readonly #deadly: ReadonlySet<string>
  readonly #fetchMs: number
  readonly #checks: boolean
  readonly #activateMs: number
  #counted: { atMs: number; counts: ReturnType<Region['countNow']> } | undefined
  readonly #next: () => number
  readonly #chance: (share: number) => boolean

  constructor(o: {
    name: string
    machines: number
    bad: ReadonlySet<string>
    /** Templates that some machines don't survive. */
    deadly: ReadonlySet<string>
    next: () => number
    chance: (share: number) => boolean
    /** What fetching and activating takes, half as long to half as long again. */
    fetchMs: number
    activateMs: number
  }) {
    this.name = o.name
    this.#fetchMs = o.fetchMs
    this.#checks = o.machines <= 100
    this.#activateMs = o.activateMs
    this.#bad = o.bad
    this.#deadly = o.deadly
    this.#next = o.next
    this.#chance = o.chance
    this.machines = Array.from({ length: o.machines }, () => ({
      ...{ running: undefined, goal: undefined, has: new Map(), failed: undefined, sequence: 0, activating: undefined },
      ...{ waiting: undefined, lastGrant: undefined, downUntilMs: 0, pollAtMs: o.next() * pollMs },
      ...{
        row: { report: undefined, seenMs: Number.NEGATIVE_INFINITY },
        grant: undefined,
        forgottenUntilMs: 0,
        backAtMs: 0,
      },
    }))
  }

  step(nowMs: number, hub: Hub): void {
    if (this.#chance(0.002)) {
      // its memory is gone; its rows are not
      this.#downUntilMs = nowMs + 1000 + this.#next() * 60_000
      this.#freshAtMs = Number.NEGATIVE_INFINITY
    }
    // one of before machines came knows nothing of them
    if (nowMs % 60_000 === 0 && this.machines.every(({ row }) => row.report)) this.#backUp()
    if (this.#chance(0.0003)) this.#restore(nowMs)
    if (this.#chance(0.0005)) {
      // power, and all that hang on it
      const untilMs = nowMs + 20_000 + this.#next() * 300_000
      for (const machine of this.machines) {
        if (this.#next() >= 0.3) continue
        machine.downUntilMs = Math.max(machine.downUntilMs, untilMs)
        if (machine.activating) machine.activating.lostPower = true
      }
    }
    if (this.#chance(0.002)) this.#cutUntilMs = nowMs + 1000 + this.#next() * 120_000
    const up = nowMs >= this.#downUntilMs
    if (!up) this.#upSinceMs = nowMs
    if (up && nowMs >= this.#cutUntilMs && nowMs >= this.#mirrorAtMs) {
      this.#mirrorAtMs = nowMs + mirrorMs * (0.5 + this.#next())
      this.#mirror(nowMs, hub)
    }
    for (const machine of this.machines) this.#stepMachine(machine, nowMs, up, hub)
    for (const late of this.#late.splice(0, this.#late.filter(({ atMs }) => atMs <= nowMs).length))
      hub.reported.set(this.name, late.status)
  }

  /** As fleet/goals. */
  #put(order: Order): void {
    const before = this.#order
    this.#order = order
    if (!before || order.revision > before.revision) return
    if (order.revision === before.revision && order.template === before.template) return
    this.#haltedRevision = 0
    for (const { row, grant } of this.machines) {
      if (row.report) row.report.revision = 0
      if (grant) grant.revision -= 1_000_000
    }
  }

  #backUp(): void {
    this.#backups.push(
      structuredClone({
        order: this.#order,
        halted: this.#haltedRevision,
        rows: this.machines.map(({ row, grant }) => ({ row, grant })),
      }),
    )
    if (this.#backups.length > 5) this.#backups.shift()
  }

  /** Its database is put back as it was some minutes ago. That takes longer than a grant is good for. */
  #restore(nowMs: number): void {
    const [backup] = this.#backups
    if (!backup) return
    const { order, halted, rows } = structuredClone(backup)
    this.#order = order
    this.#haltedRevision = halted
    for (const [at, { row, grant }] of rows.entries())
      Object.assign(this.machines[at] ?? {}, { row, grant, forgottenUntilMs: Number.POSITIVE_INFINITY })
    this.#downUntilMs = Math.max(this.#downUntilMs, nowMs + 100_000 + this.#next() * 60_000)
    this.#freshAtMs = Number.NEGATIVE_INFINITY
  }

  #mirror(nowMs: number, hub: Hub): void {
    const told = hub.told.get(this.name)
    // an old word may be said again
    const heard = this.#chance(0.05) ? this.#older[Math.floor(this.#next() * this.#older.length)] : told
    if (told && this.#older.at(-1) !== told) this.#older.push(told)
    if (heard && heard.sequence > (this.#order?.sequence ?? 0)) this.#put(heard)
    const { index } = hub
    if (index && index.issuedAt > this.#indexIssuedAt) {
      this.#indexIssuedAt = index.issuedAt
      this.#indexSequence = index.sequences.get(this.name) ?? -1
      this.#settled = index.settled
      this.#freshAtMs = nowMs
    }
    if (!this.#order || this.#chance(0.1)) return
    const { revision, sequence } = this.#order
    const { desired, fetched, updated, healthy, failed, unreachable, manySilent } = this.#count(nowMs)
    const counts = { desired, fetched, updated, healthy, failed, unreachable }
    const highest = Math.max(...this.machines.map(({ row }) => row.report?.sequence ?? 0))
    const status = {
      revision,
      sequence,
      highest,
      counts,
      halted: this.#haltedRevision === revision && !this.#trusts(this.#order),
      manySilent,
    }
    // in order, as writes of one object are
    const lateMs = Math.max(this.#late.at(-1)?.atMs ?? 0, nowMs + (this.#chance(0.1) ? this.#next() * 20_000 : 0))
    this.#late.push({ atMs: lateMs, status })
  }

  #stepMachine(machine: Machine, nowMs: number, serverUp: boolean, hub: Hub): void {
    if (nowMs < machine.downUntilMs) return
    if (this.#chance(0.0005)) {
      machine.downUntilMs = nowMs + this.#next() * 300_000
      if (machine.activating) machine.activating.lostPower = true
      return
    }
    const { activating, waiting } = machine
    if (activating && nowMs >= activating.untilMs) {
      if (this.#deadly.has(activating.template) && this.#next() < 0.3) {
        machine.downUntilMs = Number.POSITIVE_INFINITY
        activating.lostPower = true
        return
      }
      if (this.#bad.has(activating.template))
        machine.failed = { revision: activating.revision, template: activating.template }
      else machine.running = activating.template
      machine.activating = undefined
      // news is told at once
      machine.pollAtMs = nowMs
    }
    if (waiting && nowMs >= waiting.beginAtMs) {
      machine.waiting = undefined
      this.#begin(machine, waiting, nowMs, hub)
    }
    if (nowMs < machine.pollAtMs) return
    machine.pollAtMs = nowMs + pollMs * (0.8 + 0.4 * this.#next())
    if (!serverUp || this.#chance(0.02)) return
    // said twice, or answered to nobody
    if (this.#chance(0.02)) this.#poll(machine, nowMs)
    const answer = this.#poll(machine, nowMs)
    if (!answer || this.#chance(0.02)) return
    const { order, grant } = answer
    if (order.sequence >= (machine.goal?.sequence ?? 0)) machine.goal = order
    const fetchedMs = machine.has.get(order.template) ?? nowMs + this.#fetchMs * (0.5 + this.#next())
    machine.has.set(order.template, fetchedMs)
    if (fetchedMs > nowMs) machine.pollAtMs = Math.min(machine.pollAtMs, fetchedMs)
    // frozen in between, it goes on with what it heard
    const pauseMs = this.#chance(0.02) ? this.#next() * 120_000 : this.#next() * 1000
    if (grant) machine.waiting = { grant, receivedMs: nowMs, beginAtMs: nowMs + pauseMs }
  }

  /** As agent/activate's refuseGrant. */
  #begin(machine: Machine, { grant, receivedMs }: NonNullable<Machine['waiting']>, nowMs: number, hub: Hub): void {
    const { goal } = machine
    if (!goal || goal.sequence !== grant.sequence || goal.revision !== grant.revision || goal.halted) return
    if (nowMs - receivedMs >= grant.beginByMs - receivedMs || machine.activating) return
    if (goal.sequence < machine.sequence)
      throw new Error(`${this.name}: sequence ${goal.sequence} after ${machine.sequence}`)
    const stoppedMs = nowMs - hub.stoppedAt(goal.revision)
    if (stoppedMs > indexLifetimeMs + beginWithinMs + mirrorMs * 2)
      throw new Error(`${this.name}: revision ${goal.revision} begun ${stoppedMs} ms after it was stopped`)
    machine.sequence = goal.sequence
    machine.lastGrant = grant.id
    const untilMs = nowMs + this.#activateMs * (0.5 + this.#next())
    machine.activating = {
      template: goal.template,
      revision: goal.revision,
      ...{ grantId: grant.id, givenMs: grant.givenMs },
      untilMs,
      lostPower: false,
    }
    if (this.#checks) this.#checkTarget(goal, grant, nowMs)
  }

  #poll(machine: Machine, nowMs: number): { order: Order; grant: Grant | undefined } | undefined {
    const order = this.#order
    if (nowMs - machine.row.seenMs >= unreachableMs) machine.backAtMs = nowMs
    machine.row = { report: this.#reportOf(machine, nowMs), seenMs: nowMs }
    machine.forgottenUntilMs = Math.min(machine.forgottenUntilMs, nowMs + beginWithinMs)
    const { report } = machine.row
    const { grant } = machine
    if (grant && report) {
      const own = grant.id === report.grantId
      if (own) grant.begun = true
      const ended = own && (report.state === 'Healthy' || report.state === 'RolledBack')
      if (ended || (report.state !== 'Activating' && grant.revision < report.revision)) machine.grant = undefined
    }
    if (!order) return undefined
    return { order, grant: this.#grant(machine, order, nowMs) }
  }

  #reportOf({ goal, has, running, activating, failed, lastGrant }: Machine, nowMs: number): Report | undefined {
    if (!goal) return undefined
    const { template, revision } = goal
    const fetched = (has.get(template) ?? Number.POSITIVE_INFINITY) <= nowMs
    const settled = running === template ? 'Healthy' : fetched ? 'Fetched' : 'Fetching'
    const state = activating
      ? 'Activating'
      : failed?.revision === revision && failed.template === template
        ? 'RolledBack'
        : settled
    return { sequence: goal.sequence, state, template, revision, running, grantId: lastGrant }
  }

  /** As fleet/grant: one transaction over the rows. */
  #grant(machine: Machine, order: Order, nowMs: number): Grant | undefined {
    const fresh = nowMs - this.#freshAtMs < indexLifetimeMs && this.#indexSequence === order.sequence
    const { report } = machine.row
    const trusted = this.#trusts(order)
    if (this.#haltedRevision === order.revision && !trusted) return undefined
    if (!fresh || !report || order.halted) return undefined
    if (report.state !== 'Fetched' || report.template !== order.template || report.running === order.template)
      return undefined
    const before = machine.grant?.revision === order.revision ? machine.grant : undefined
    const withinMs = Math.min(beginWithinMs, indexLifetimeMs - (nowMs - this.#freshAtMs))
    if (before && isOpen(before, nowMs))
      return before.beginByMs > nowMs ? { ...before, sequence: order.sequence } : undefined
    if (before) machine.grant = undefined
    const counts = this.#count(nowMs)
    const answer = mayActivate({ ...order, trusted }, counts, { serves: report.running !== undefined })
    if (answer === 'Halts') this.#haltedRevision = order.revision
    if (answer !== 'Yes') return undefined
    counts.unavailable++
    counts.updatedOrGranted++
    const grant = {
      ...{
        id: ++this.#grantIds,
        template: order.template,
        revision: order.revision,
        sequence: order.sequence,
        ...{ target: order.target, givenMs: nowMs },
        begun: false,
      },
      ...{ beginByMs: nowMs + withinMs, endsAtMs: nowMs + withinMs + 2 * this.#activateMs + reportSlackMs },
    }
    machine.grant = grant
    return grant
  }

  #trusts(order: Order): boolean {
    return order.rollback || (this.#settled && this.#indexSequence === order.sequence)
  }

  /** Once a tick, as a batch of grants counts once; what is granted since is counted by who grants it. */
  #count(nowMs: number) {
    if (this.#counted?.atMs !== nowMs) this.#counted = { atMs: nowMs, counts: this.countNow(nowMs) }
    return this.#counted.counts
  }

  /** As fleet/counts. */
  countNow(nowMs: number): Tally {
    const order = this.#order
    const trusted = order !== undefined && this.#trusts(order)
    return tally(order ? this.#known(order, nowMs) : [], { trusted })
  }

  *#known(order: Order, nowMs: number): Generator<Known> {
    const isYoung = nowMs - this.#upSinceMs <= unreachableMs
    for (const { row, grant } of this.machines) {
      const { report, seenMs } = row
      if (seenMs === Number.NEGATIVE_INFINITY) continue
      const quietMs = nowMs - seenMs
      const silent = quietMs < unreachableMs + latelyMs ? 'LatelySilent' : 'Silent'
      const isQuiet = isYoung ? seenMs < this.#upSinceMs : quietMs >= unreachableMs
      const over = grant && (grant.begun || seenMs < grant.beginByMs) ? 'Unresolved' : 'None'
      yield {
        ...{ machines: 1, state: report?.state ?? 'Waiting', runs: report?.running === order.template },
        ...{ ofTemplate: report?.template === order.template, ofRevision: report?.revision === order.revision },
        granted: grant && isOpen(grant, nowMs) ? 'Open' : over,
        grantOfTemplate: grant?.template === order.template,
        grantOfRevision: grant?.revision === order.revision,
        heard: isQuiet ? (isYoung ? 'NotYet' : silent) : 'Heard',
      }
    }
  }

  /**
   * Who was granted something that no backup knows, and was out of reach for a minute, can't be reckoned with by a server
   * that gives a grant then.
   */
  #isReckoned({ forgottenUntilMs, row }: Machine, nowMs: number, givenMs: number): boolean {
    const onRoster = row.seenMs > Number.NEGATIVE_INFINITY
    const isYoung = givenMs >= this.#upSinceMs && givenMs - this.#upSinceMs <= unreachableMs
    return forgottenUntilMs <= nowMs || (onRoster && isYoung)
  }

  #checkTarget(goal: Order, grant: Grant, nowMs: number): void {
    const desired = this.machines.length
    const moved = this.machines.filter(
      (machine) =>
        // others take the place of those that are silent
        grant.givenMs - machine.row.seenMs < unreachableMs &&
        machine.backAtMs < grant.givenMs &&
        (machine.running === goal.template || machine.activating?.template === goal.template) &&
        this.#isReckoned(machine, nowMs, grant.givenMs),
    ).length
    const most = Math.max(targetCount(goal.target, desired), targetCount(grant.target, desired))
    if (moved > most) throw new Error(`${this.name}: ${moved} machines moved, the target is ${most}`)
  }

  /** What must hold at any time. */
  check(nowMs: number, hub: Hub): void {
    // who loses its power is down, but not by what we do
    const givenMs = Math.max(...this.machines.map(({ activating }) => activating?.givenMs ?? 0))
    const down = this.machines.filter(
      (machine) =>
        machine.activating &&
        !machine.activating.lostPower &&
        machine.running !== undefined &&
        this.#isReckoned(machine, nowMs, givenMs),
    ).length
    const budget = Math.max(1, resolveCount(hub.rollout.maxUnavailable, this.machines.length))
    if (down > budget) throw new Error(`${this.name}: ${down} machines are down at once, ${budget} may`)
  }

  /** Every machine that lives. */
  runs(template: string): boolean {
    return this.machines.every(
      ({ running, activating, downUntilMs }) =>
        downUntilMs === Number.POSITIVE_INFINITY || (running === template && !activating),
    )
  }

  show(): string {
    const of = this.machines.map(
      ({ running, activating, goal }) => `${running}${activating ? '>' : ''}@${goal?.revision}`,
    )
    return `${this.name} ${JSON.stringify(this.#order)} halted ${this.#haltedRevision}: ${of.join(' ')}`
  }
}

const isOpen = (grant: Grant, nowMs: number): boolean =>
  (grant.begun ? grant.endsAtMs : grant.beginByMs + reportSlackMs) > nowMs
