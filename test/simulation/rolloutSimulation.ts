import { GoalState, type Wave } from '../../api/goalState.ts'
import { endHistory, type GoalStatus, progressOf, startRollout } from '../../controllers/goalState/status.ts'
import { type Choice, chooseTemplate, engineName, fallbackOf } from '../../rollout/effective.ts'
import { advance, enterWave, type Gates, openWave } from '../../rollout/engine.ts'
import { nextSequence } from '../../rollout/envelope.ts'
import { rollbackWaves, targetOf } from '../../rollout/plan.ts'
import { type Order, Region, type RegionStatus } from './rolloutRegion.ts'
import { random } from './xorshift.ts'

const tickMs = 1000
const stepGapMs = 10_000
const indexEveryMs = 20_000
/** Within so long all of it comes right once nothing is wrong any more. */
const settleMs = 1_800_000

type Rollout = GoalState['spec']['rollout'] & { waves: Wave[] }

export interface RolloutWorld {
  seed: number
  regions: number
  machines: number
  rollout: Rollout
  /** Templates that don't become healthy. */
  bad: ReadonlySet<string>
  /** Templates that some machines don't survive. */
  deadly?: ReadonlySet<string>
  /** What people say, and when, ms. */
  wishes: { atMs: number; do: (hub: Hub) => void }[]
  /** Until then things crash, freeze, are cut off, lost and repeated. */
  faultsMs: number
  fetchMs?: number
  activateMs?: number
  onTick?: (nowMs: number, hub: Hub, regions: Region[]) => void
}

/** With what the schema says where nothing is given, and one wave for all where none is. */
export function rolloutOf(rollout: object): Rollout {
  const spec = { artifactRef: { name: 'a' }, activation: { command: ['a'] }, rollout }
  const parsed = GoalState.parse(GoalState.make({ name: 'web', namespace: 'demo' }, spec)).spec.rollout
  return { ...parsed, waves: parsed.waves ?? [{ regions: ['*'], percent: 100, soak: '0s' }] }
}

/** A hub died in the middle of something. */
class Died extends Error {}
/** The API server refused a write: it is tried again. */
class Conflicted extends Error {}

type Written = Pick<Hub, 'status' | 'wanted' | 'holds' | 'paused' | 'approved' | 'revisions' | 'told' | 'index'>

/** The hub: what it has written down outlives it, but for what a backup does not know. */
export class Hub {
  readonly names: string[]
  wanted = 'a'
  rollout: Rollout
  status: GoalStatus = {}
  holds = new Map<string, { by: string; to?: number }>()
  paused = new Set<number>()
  approved = new Map<number, Set<number>>()
  /** Templates by revision. */
  revisions = new Map<number, string>()
  told = new Map<string, Order>()
  readonly reported = new Map<string, RegionStatus>()
  index: { writtenMs: number; issuedAt: number; sequences: Map<string, number>; settled: boolean } | undefined
  /** When each wave of a revision was opened, for the checks. */
  opened: { revision: number; wave: number; atMs: number; soakMs: number }[] = []
  #skewMs = 0
  readonly #backups: Written[] = []
  #downUntilMs = 0
  #steppedMs: number | undefined
  #stopped: { revision: number; atMs: number } | undefined
  readonly #fails: () => 'Dies' | 'Conflicts' | undefined
  readonly #next: () => number

  constructor(o: {
    names: string[]
    rollout: Rollout
    fails: () => 'Dies' | 'Conflicts' | undefined
    next: () => number
  }) {
    this.names = o.names
    this.#next = o.next
    this.rollout = o.rollout
    this.#fails = o.fails
  }

  get effective() {
    return this.status.effective
  }

  /** Since when every region is told that nothing of this revision begins; never: infinitely late. */
  stoppedAt(revision: number): number {
    return this.#stopped?.revision === revision ? this.#stopped.atMs : Number.POSITIVE_INFINITY
  }

  /** Of all that is in its API server. */
  backUp(): void {
    const { status, wanted, holds, paused, approved, revisions, told, index } = this
    this.#backups.push(structuredClone({ status, wanted, holds, paused, approved, revisions, told, index }))
    if (this.#backups.length > 5) this.#backups.shift()
  }

  /** Everything since an earlier backup is forgotten, and the hub comes back after a while. */
  restore(nowMs: number, downMs: number): void {
    const [backup] = this.#backups
    if (!backup) return
    Object.assign(this, structuredClone(backup))
    this.reported.clear()
    this.opened = []
    this.#stopped = undefined
    this.#steppedMs = undefined
    this.#downUntilMs = nowMs + downMs
  }

  /** A hub that was frozen goes on for a moment, and says once more what it said before another took over. */
  haunt(nowMs: number, order: Order, region: string): void {
    const sequence = nextSequence([this.told.get(region)?.sequence ?? 0], nowMs + this.#skewMs, this.#next)
    this.told.set(region, { ...order, sequence })
    // told to stop anew, as soon as it is seen
    this.#stopped = undefined
  }

  step(nowMs: number): void {
    if (nowMs < this.#downUntilMs) return
    try {
      this.#writeIndex(nowMs)
      this.#reconcile(nowMs)
    } catch (error) {
      if (error instanceof Conflicted) return
      if (!(error instanceof Died)) throw error
      this.#steppedMs = undefined
      this.#downUntilMs = nowMs + 2000 + this.#next() * 60_000
      // who takes over has a clock of its own
      this.#skewMs = (this.#next() - 0.5) * 600_000
    }
  }

  choice(): Choice | undefined {
    return chooseTemplate({
      ...{ wanted: this.wanted, status: this.status, onFailure: this.rollout.onFailure },
      holdOf: (template) => this.holds.get(template),
      templateOf: (revision) => this.revisions.get(revision),
    })
  }

  #mayDie(): void {
    const fault = this.#fails()
    if (fault === 'Dies') throw new Died()
    if (fault === 'Conflicts') throw new Conflicted()
  }

  #writeIndex(nowMs: number): void {
    if (this.index && nowMs - this.index.writtenMs < indexEveryMs && !this.#indexIsOld()) return
    this.index = {
      writtenMs: nowMs,
      issuedAt: Math.max((this.index?.issuedAt ?? 0) + 1, nowMs + this.#skewMs),
      sequences: new Map([...this.told].map(([region, { sequence }]) => [region, sequence])),
      settled: this.status.lastGood !== undefined && this.status.lastGood.revision === this.effective?.revision,
    }
  }

  #indexIsOld(): boolean {
    return [...this.told].some(([region, { sequence }]) => this.index?.sequences.get(region) !== sequence)
  }

  /** As controllers/goalState does, in the same order. */
  #reconcile(nowMs: number): void {
    const choice = this.choice()
    if (choice) {
      const last = Math.max(0, ...this.revisions.keys())
      const heard = Math.max(0, ...[...this.reported.values()].map(({ revision }) => revision))
      const made = this.revisions.get(last) === choice.template && this.effective?.revision !== last && last > heard
      const revision = made ? last : Math.max(last, heard) + 1
      this.revisions.set(revision, choice.template)
      this.#mayDie()
      const effective = { template: choice.template, artifact: choice.template, revision }
      this.status = startRollout(this.status, { effective, rollback: choice.rollback, regions: this.names, nowMs })
      this.#mayDie()
    }
    const { effective, rollback = false } = this.status
    if (!effective) return
    const waves = rollback ? rollbackWaves : this.rollout.waves
    const rollout = { ...this.rollout, waves }
    const gates: Gates = {
      approved: this.approved.get(effective.revision) ?? new Set(),
      promoted: new Set(),
      stopped: this.paused.has(effective.revision) ? { is: 'Paused', message: '' } : undefined,
    }
    const standing = progressOf(this.status, waves.length)
    const progress = enterWave(rollout, standing, gates)
    const held = !rollback && this.holds.has(effective.template)
    const halted = held || gates.stopped !== undefined
    // Before the first region is told to go on: the hub may die before the others are.
    if (!halted) this.#stopped = undefined
    const good = fallbackOf(this.status, effective.template)
    for (const region of this.names) {
      const order = {
        ...{ template: effective.template, revision: effective.revision, previous: good?.template },
        ...{ target: targetOf(waves, openWave(progress), region), rollback, halted },
        ...{ maxUnavailable: this.rollout.maxUnavailable, failureThreshold: this.rollout.failureThreshold },
      }
      const before = this.told.get(region)
      const report = this.reported.get(region)
      const observed = Math.max(report?.sequence ?? 0, report?.highest ?? 0)
      const same = before && JSON.stringify({ ...order, sequence: before.sequence }) === JSON.stringify(before)
      if (same && observed <= before.sequence) continue
      const sequence = nextSequence([before?.sequence ?? 0, observed], nowMs + this.#skewMs, this.#next)
      this.told.set(region, { ...order, sequence })
      this.#mayDie()
    }
    if (halted && this.#stopped?.revision !== effective.revision)
      this.#stopped = { revision: effective.revision, atMs: nowMs }
    const reports = this.names.map((region) => {
      const report = this.reported.get(region)
      const current = report?.revision === effective.revision
      return {
        region,
        counts: current ? report.counts : undefined,
        fresh: current && report.sequence >= (this.told.get(region)?.sequence ?? Number.POSITIVE_INFINITY),
        halted: current && report.halted,
        manySilent: current && report.manySilent,
      }
    })
    const sinceMs = nowMs - (this.#steppedMs ?? nowMs)
    this.#steppedMs = nowMs
    const elapsedMs = sinceMs > stepGapMs ? 0 : sinceMs
    const step = advance(rollout, progress, { reports, elapsedMs, gates })
    this.#mayDie()
    const total = (name: 'fetched' | 'healthy') => reports.reduce((sum, { counts }) => sum + (counts?.[name] ?? 0), 0)
    const opened = openWave(step.progress)
    if (opened > openWave(standing) && waves[opened])
      this.opened.push({
        ...{ revision: effective.revision, wave: opened, atMs: nowMs },
        soakMs: msOf(waves[opened].soak),
      })
    this.status = {
      ...this.status,
      ...{ waveIndex: step.progress.waveIndex, waveOpen: step.progress.open },
      ...{ soakedMs: step.progress.soakedMs, waitedMs: step.progress.waitedMs },
      ...{ fetched: total('fetched'), healthy: total('healthy') },
    }
    const at = new Date(nowMs).toISOString()
    if (step.verdict.is === 'Complete' && !held && this.status.lastGood?.revision !== effective.revision) {
      const { lastGood } = this.status
      const before = lastGood?.template === effective.template ? this.status.goodBefore : lastGood
      this.status = {
        ...this.status,
        lastGood: effective,
        ...(before && before.template !== effective.template && { goodBefore: before }),
        history: endHistory(this.status, effective.revision, 'Succeeded', at),
      }
    }
    if (step.verdict.is === 'Failed' && !rollback && !held) {
      this.holds.set(effective.template, { by: engineName })
      this.#mayDie()
      this.status = { ...this.status, history: endHistory(this.status, effective.revision, 'Failed', at) }
    }
  }
}

const msOf = (duration: string): number =>
  Number(/\d+/.exec(duration)?.[0] ?? 0) * (duration.endsWith('m') ? 60_000 : 1000)

export interface RolloutResult {
  /** From the end of the faults until all is as it should be. */
  settledMs: number
  hub: Hub
  regions: Region[]
}

/** @throws Error when something happens that must not, or it does not come right. */
export function simulateRollout(world: RolloutWorld): RolloutResult {
  const next = random(world.seed)
  const faulty = { on: true }
  const chance = (share: number) => faulty.on && next() < share
  const names = Array.from({ length: world.regions }, (_, index) => `r${index}`)
  const fails = () => (chance(0.01) ? 'Dies' : chance(0.02) ? 'Conflicts' : undefined)
  const hub = new Hub({ names, rollout: world.rollout, fails, next })
  const { machines, bad, deadly = new Set<string>(), fetchMs = 20_000, activateMs = 15_000 } = world
  const regions = names.map((name) => new Region({ name, machines, bad, deadly, next, chance, fetchMs, activateMs }))
  const wishes = [...world.wishes]
  for (let nowMs = 0; ; nowMs += tickMs) {
    faulty.on = nowMs < world.faultsMs
    // a backup may have brought a pause back
    if (!faulty.on) hub.paused.clear()
    for (const wish of wishes.splice(0, wishes.filter(({ atMs }) => atMs <= nowMs).length)) wish.do(hub)
    if (faulty.on && nowMs % 60_000 === 0) hub.backUp()
    if (chance(0.0003)) hub.restore(nowMs, 10_000 + next() * 60_000)
    const [haunted = ''] = chance(0.001) ? names : []
    const old = hub.told.get(haunted)
    hub.step(nowMs)
    if (old) hub.haunt(nowMs, old, haunted)
    for (const region of regions) {
      region.step(nowMs, hub)
      region.check(nowMs, hub)
    }
    checkWaves(hub)
    world.onTick?.(nowMs, hub, regions)
    const settled = nowMs >= world.faultsMs && wishes.length === 0 && isSettled(hub, regions)
    if (settled) return { settledMs: nowMs - world.faultsMs, hub, regions }
    if (nowMs > world.faultsMs + settleMs)
      throw new Error(
        `it does not come right: ${JSON.stringify(hub.status)} ${regions.map((region) => region.show()).join('; ')}`,
      )
  }
}

/** No wave begins before the one before it has soaked. */
function checkWaves(hub: Hub): void {
  const last = hub.opened.at(-1)
  const before = hub.opened.at(-2)
  if (!last || !before || last.revision !== before.revision) return
  if (last.atMs - before.atMs < before.soakMs)
    throw new Error(`wave ${last.wave} began ${last.atMs - before.atMs} ms after the one before`)
}

function isSettled(hub: Hub, regions: Region[]): boolean {
  const { effective, lastGood } = hub.status
  if (!effective || hub.paused.has(effective.revision) || hub.choice()) return false
  // what is held and has nothing to go back to stays halted
  if (hub.holds.has(effective.template) && !hub.status.rollback) return true
  return (
    lastGood?.revision === effective.revision &&
    (effective.template === hub.wanted || hub.holds.has(hub.wanted)) &&
    regions.every((region) => region.runs(effective.template))
  )
}
