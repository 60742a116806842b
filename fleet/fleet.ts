import type { MachineCounts, MachineFailure } from '../api/goalState.ts'
import type { ArtifactSpread } from '../api/regionalGoalState.ts'
import type { GoalPayload, IndexPayload } from '../rollout/envelope.ts'
import type { Clock } from '../runtime/clock.ts'
import type { VerificationKey } from '../runtime/dsse.ts'
import type { Logger } from '../runtime/log.ts'
import type { Server } from '../runtime/server.ts'
import type { Database } from '../runtime/sql.ts'
import { countMachines, listFailures } from './counts.ts'
import { Goals } from './goals.ts'
import { HubIndex } from './hubIndex.ts'
import { type FleetRoutesOptions, registerFleetRoutes } from './routes.ts'
import { SpreadReader } from './spread.ts'
import { Swarms, type SwarmsOptions } from './swarms.ts'
import { regionSecret, TrackerHolder } from './trackerHolder.ts'

type RouteOptions = Pick<
  FleetRoutesOptions,
  'region' | 'descriptorKey' | 'clusters' | 'certificate' | 'metrics' | 'pollMs' | 'beginWithinMs'
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
  readonly #spread: SpreadReader
  #swarms: Swarms | undefined
  readonly #startedAt: number

  constructor(options: FleetOptions) {
    const { database, keys, clock, log, url, indexLifetimeMs } = options
    this.#options = options
    this.#goals = new Goals(database, keys)
    this.#index = new HubIndex({ database, keys, clock, lifetimeMs: indexLifetimeMs })
    this.#holder = new TrackerHolder({ database, url, clock, log })
    this.#spread = new SpreadReader(database)
    this.#startedAt = clock.monotonic()
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
      holder: this.#holder,
      swarms: this.#swarms,
      secret,
      unreachableMs: () => this.#silentMs(),
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
    await Promise.all([this.#holder.run(signal), refreshing()])
  }

  /** Takes over a goal the hub signed; false when a later one is here. */
  put(payload: GoalPayload, envelope: string): Promise<boolean> {
    return this.#goals.put(payload, envelope)
  }

  /** Takes over an index the hub signed. Goals it doesn't name are no longer offered. */
  async putIndex(payload: IndexPayload, envelope: string): Promise<void> {
    if (await this.#index.put(payload, envelope)) await this.#goals.withdrawExcept(new Set(Object.keys(payload.goals)))
  }

  /** What the machines say of each goal. */
  async counts(): Promise<{ namespace: string; name: string; counts: GoalCounts }[]> {
    const { database } = this.#options
    const counted = [...this.#goals.offered.values()].map(async ({ payload }) => {
      const { namespace, name, sequence, revision } = payload
      const { unavailable, updatedOrGranted, ...counts } = await countMachines(database, payload, this.#silentMs())
      const failures = counts.failed > 0 ? await listFailures(database, payload) : []
      const [row] = await database.query<{ halted: number | null }>(
        'SELECT halted_revision AS halted FROM goal WHERE namespace = ? AND name = ?',
        [namespace, name],
      )
      const { infoHash } = payload.template.artifact
      const fetch = await this.#spread.read(payload, { infoHash, fetched: counts.fetched })
      const halted = row?.halted === revision
      return { namespace, name, counts: { ...counts, sequence, revision, halted, failures, ...(fetch && { fetch }) } }
    })
    return Promise.all(counted)
  }

  #silentMs(): number {
    const { clock, unreachableMs } = this.#options
    return clock.monotonic() - this.#startedAt > unreachableMs ? unreachableMs : neverMs
  }
}
