import type { MachineCounts, MachineFailure } from '../api/goalState.ts'
import type { ArtifactSpread } from '../api/regionalGoalState.ts'
import type { GoalPayload, IndexPayload } from '../rollout/envelope.ts'
import { roomOf } from '../rollout/grant.ts'
import type { Clock } from '../runtime/clock.ts'
import type { VerificationKey } from '../runtime/dsse.ts'
import type { Logger } from '../runtime/log.ts'
import type { Server } from '../runtime/server.ts'
import type { Database } from '../runtime/sql.ts'
import { countMachines, type Listening, listFailures } from './counts.ts'
import { type Goal, Goals } from './goals.ts'
import { HeldPolls } from './heldPolls.ts'
import { HubIndex } from './hubIndex.ts'
import { Roster } from './roster.ts'
import { type FleetRoutesOptions, registerFleetRoutes } from './routes.ts'
import { SpreadReader } from './spread.ts'
import { Swarms, type SwarmsOptions } from './swarms.ts'
import { regionSecret, TrackerHolder } from './trackerHolder.ts'

type RouteOptions = Pick<
  FleetRoutesOptions,
  'region' | 'descriptorKey' | 'clusters' | 'certificate' | 'metrics' | 'pollMs' | 'holdMs' | 'beginWithinMs'
>

export interface FleetOptions extends RouteOptions {
  database: Database
  /** The region's own bucket; undefined until the hub has said where it is. */
  store: FleetRoutesOptions['store'] & SwarmsOptions['store']
  /** The hub's. */
  keys: VerificationKey[]
  /** Where the other replicas reach this one. */
  url: string
  clock: Clock
  log: Logger
  /** How long after an index this region grants. */
  indexLifetimeMs: number
  /** A machine silent so long is unreachable. */
  unreachableMs: number
  announceMs: number
  originLeaseMs: number
}

/** What a region reports of one goal. */
export interface GoalCounts extends MachineCounts {
  sequence: number
  revision: number
  halted: boolean
  manySilent: boolean
  highestSequence?: number
  failures: MachineFailure[]
  fetch?: ArtifactSpread
}

/** Longer than anything was silent: for a server that was not up itself the whole time. */
const neverMs = 1e12

/** A region's fleet: its goals, its machines, and the routes machines call. */
export class Fleet {
  readonly #options: FleetOptions
  readonly #goals: Goals
  readonly #index: HubIndex
  readonly #holder: TrackerHolder
  readonly #held: HeldPolls
  readonly #roster: Roster
  readonly #spread: SpreadReader
  #swarms: Swarms | undefined
  /** When this server began to hear machines: it started, or its database came back. */
  #listensSince: number

  constructor(options: FleetOptions) {
    const { database, keys, clock, log, url, indexLifetimeMs } = options
    this.#options = options
    this.#goals = new Goals(database, keys)
    this.#index = new HubIndex({ database, keys, clock, lifetimeMs: indexLifetimeMs })
    this.#holder = new TrackerHolder({ database, url, clock, log })
    this.#held = new HeldPolls(clock)
    this.#goals.onChange((changed) => this.#held.goalsChanged(changed))
    this.#roster = new Roster({ database, clock, log })
    this.#spread = new SpreadReader(database)
    this.#listensSince = clock.monotonic()
  }

  /** Reads what was known before, and answers machines from then on. */
  async serve(server: Server): Promise<void> {
    const { database } = this.#options
    const secret = await regionSecret(database)
    this.#swarms = new Swarms({ ...this.#options, holder: this.#holder, secret })
    await this.#index.load()
    await this.#goals.refresh()
    await this.#holder.turn()
    registerFleetRoutes(server, {
      ...this.#options,
      goals: this.#goals,
      index: this.#index,
      held: this.#held,
      holder: this.#holder,
      swarms: this.#swarms,
      secret,
      listening: () => this.#listening(),
    })
  }

  async run(signal: AbortSignal): Promise<void> {
    const { clock, log } = this.#options
    const refreshing = async () => {
      while (!signal.aborted) {
        await clock.sleep(1000, signal).catch(() => undefined)
        if (signal.aborted) return
        const failed = (error: unknown) => log.info({ err: error }, 'the spread of artifacts was not noted')
        await this.#swarms?.tend().catch(failed)
        await this.#goals.refresh().catch((error: unknown) => log.info({ err: error }, 'reading the goals failed'))
      }
    }
    await Promise.all([this.#holder.run(signal), this.#held.run(signal), this.#roster.run(signal), refreshing()])
  }

  /** Takes over a goal the hub signed; false when a later one is here. */
  put(payload: GoalPayload, envelope: string): Promise<boolean> {
    return this.#goals.put(payload, envelope)
  }

  /** Takes over an index the hub signed. Goals it doesn't name are no longer offered. */
  async putIndex(payload: IndexPayload, envelope: string): Promise<void> {
    if (!(await this.#index.put(payload, envelope))) return
    this.#held.indexChanged()
    await this.#goals.withdrawExcept(new Set(Object.keys(payload.goals)))
  }

  /** What the machines say of each goal. Those that wait and may activate it now are told. */
  async counts(): Promise<{ namespace: string; name: string; counts: GoalCounts }[]> {
    try {
      return await Promise.all([...this.#goals.offered.values()].map((goal) => this.#countGoal(goal)))
    } catch (error) {
      // The database that comes back may be one of before.
      this.#listensSince = this.#options.clock.monotonic()
      throw error
    }
  }

  async #countGoal({ payload }: Goal): Promise<{ namespace: string; name: string; counts: GoalCounts }> {
    const { database } = this.#options
    const { namespace, name, sequence, revision } = payload
    const goal = { ...payload, trusted: this.#index.trusts(payload) }
    const counted = await countMachines(database, goal, this.#listening())
    const { unavailable, updatedOrGranted, highestSequence, ...counts } = counted
    const failures = counts.failed > 0 ? await listFailures(database, goal, this.#listening()) : []
    const [row] = await database.query<{ halted: number | null }>(
      'SELECT halted_revision AS halted FROM goal WHERE namespace = ? AND name = ?',
      [namespace, name],
    )
    const halted = row?.halted === revision && !goal.trusted
    const room = roomOf(goal, counted)
    if (!halted && room !== 'Halts' && this.#index.fresh && this.#index.names(payload))
      this.#held.admit(`${namespace}/${name}`, room)
    const { infoHash } = payload.template.artifact
    const fetch = await this.#spread.read(goal, { infoHash, fetched: counts.fetched })
    const more = { ...(highestSequence > sequence && { highestSequence }), ...(fetch && { fetch }) }
    return { namespace, name, counts: { ...counts, sequence, revision, halted, failures, ...more } }
  }

  #listening(): Listening {
    const { clock, unreachableMs } = this.#options
    const upMs = clock.monotonic() - this.#listensSince
    return upMs > unreachableMs ? { silentMs: unreachableMs, upMs: undefined } : { silentMs: neverMs, upMs }
  }
}
