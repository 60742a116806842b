import { basename, join } from 'node:path'
import type { SwarmView } from '../api/agentApi.ts'
import type { GoalReport, Grant } from '../api/fleetApi.ts'
import type { GoalPayload } from '../rollout/envelope.ts'
import type { Clock } from '../runtime/clock.ts'
import type { Logger } from '../runtime/log.ts'
import type { Metrics } from '../runtime/metrics.ts'
import type { SwarmNode } from '../swarm/node.ts'
import { refuseGrant, resolveRun } from './activate.ts'
import type { Membership } from './enrolment.ts'
import { type Location, ReleaseFetch } from './fetch.ts'
import type { FleetClient } from './fleet.ts'
import { type GoalBook, goalKey } from './goals.ts'
import { PlaceClient, placeDirs, releasesInUse, type StartSupervisor } from './place.ts'
import { Release, releaseName, removeReleases } from './releases.ts'
import { type FetchProgress, type HandOver, reportGoal, reportRefusal } from './report.ts'
import { Sight } from './sight.ts'
import type { PlaceStatus } from './supervisor/protocol.ts'

const lookMs = 500
const superviseMs = 5000

interface MachineOptions {
  dataDir: string
  membership: Membership
  goals: GoalBook
  fleet: FleetClient
  node: SwarmNode
  address: string
  startSupervisor: StartSupervisor
  clock: Clock
  log: Logger
  metrics: Metrics
}

/** Keeps this machine to its goals: one fetch per release that a goal names, one supervisor per place. */
export class Machine implements AsyncDisposable {
  readonly #o: MachineOptions
  readonly #releasesDir: string
  readonly #placesDir: string
  readonly #fetches = new Map<string, ReleaseFetch>()
  readonly #handOvers = new Map<string, HandOver>()
  readonly #sight: Sight
  readonly #stop = new AbortController()
  #watching: Promise<void> = Promise.resolve()
  /** What each goal's state was when last looked at. */
  #seen = ''
  #news = Promise.withResolvers<void>()

  constructor(options: MachineOptions) {
    this.#o = options
    this.#releasesDir = join(options.dataDir, 'releases')
    this.#placesDir = join(options.dataDir, 'places')
    this.#sight = new Sight(options.metrics)
  }

  /** Sees that everything that should run is supervised, and goes on fetching and seeding: the network isn't needed. */
  async start(): Promise<void> {
    await this.#supervise()
    await this.#fetchWhatIsNamed()
    this.#watching = this.#watch()
  }

  /** Resolves when a goal's state has changed since the last report. */
  news(): Promise<void> {
    return this.#news.promise
  }

  /** What each release's swarm does. */
  swarms(): SwarmView[] {
    return [...this.#fetches.values()].map((fetch) => this.#sight.view(fetch, this.#o.clock.monotonic()))
  }

  async report(): Promise<GoalReport[]> {
    this.#news = Promise.withResolvers<void>()
    const reports = await this.#reports()
    this.#seen = summary(reports)
    const { goals } = this.#o
    const refusals = goals.refusals.filter((refusal) => !goals.get(goalKey(refusal)))
    return [...reports, ...refusals.map(reportRefusal)]
  }

  /** Takes up what the goals say now, and begins what is granted. */
  async act(grants: Grant[], receivedMs: number): Promise<void> {
    await this.#fetchWhatIsNamed()
    for (const grant of grants) await this.#begin(grant, receivedMs)
  }

  async #begin(grant: Grant, receivedMs: number): Promise<void> {
    const { goals, clock, log, membership } = this.#o
    const key = goalKey(grant)
    const goal = goals.get(key)
    const refuse = () => refuseGrant(grant, goal, { receivedMs, nowMs: clock.monotonic() })
    const notFetched = () => (goal && !this.#progress(goal).fetched ? 'the release is not here yet' : undefined)
    let why = refuse() ?? notFetched()
    if (why === undefined && goal) {
      try {
        const place = this.#place(goal)
        const { template, templateHash } = goal
        const release = new Release(this.#releasesDir, template.artifact).files
        const run = resolveRun({ template, templateHash, release, place: goal.place, machineEnv: membership.env })
        await place.create()
        await place.ensure(this.#o.startSupervisor)
        // Starting a supervisor took its time.
        why = refuse()
        if (why === undefined) {
          const request = { id: grant.id, goal: key, uid: goal.uid, revision: goal.revision, run }
          const answer = await place.ask({ command: 'activate', request })
          if (!answer.ok) throw new Error(answer.message)
          this.#handOvers.delete(key)
          log.info({ goal: key, grant: grant.id, template: templateHash }, 'activation handed over')
        }
      } catch (error) {
        const message = (error as Error).message
        this.#handOvers.set(key, { grantId: grant.id, uid: goal.uid, revision: grant.revision, message })
        log.error({ goal: key, grant: grant.id, err: error }, 'activation not handed over')
      }
    }
    if (why !== undefined) log.error({ goal: key, grant: grant.id, why }, 'grant refused')
  }

  /** A fetch for every release a goal names, its last good one too; none for others. */
  async #fetchWhatIsNamed(): Promise<void> {
    const { goals, metrics, clock, log, node, address, fleet, membership } = this.#o
    metrics.gauge('agent_goals', 'Goals held.').set(goals.accepted.length)
    metrics.gauge('agent_releases_seeded', 'Whole releases given to peers.').set(this.#seeded())
    // what is to run goes before what it may go back to
    const priorities = new Map<string, number>()
    for (const goal of goals.accepted) {
      const needed = [goal.template, ...(goal.previous ? [goal.previous.template] : [])]
      for (const [i, { artifact }] of needed.entries()) {
        const name = releaseName(artifact)
        const priority = Math.max(priorities.get(name) ?? 0, i === 0 ? 1 : 0)
        priorities.set(name, priority)
        const known = this.#fetches.get(name)
        if (known) {
          known.priority = priority
          continue
        }
        const fetch = new ReleaseFetch({
          namespace: goal.namespace,
          release: new Release(this.#releasesDir, artifact),
          node,
          address,
          location: locationOf(membership),
          fleet,
          clock,
          log,
          priority,
          makeRoom: () => this.#evict(),
          onChange: () => this.#tell(),
        })
        this.#fetches.set(name, fetch)
      }
    }
    const unnamed = [...this.#fetches].filter(([name]) => !priorities.has(name))
    for (const [name] of unnamed) this.#fetches.delete(name)
    await Promise.all(unnamed.map(([, fetch]) => fetch[Symbol.asyncDispose]()))
    if (unnamed.length > 0) await this.#evict()
  }

  /** Removes the releases that no goal names and no place runs or may go back to. */
  async #evict(): Promise<void> {
    try {
      const keep = new Set(this.#fetches.keys())
      for (const dir of await placeDirs(this.#placesDir)) for (const name of await releasesInUse(dir)) keep.add(name)
      const removed = await removeReleases(this.#releasesDir, keep)
      if (removed.length > 0) this.#o.log.info({ removed }, 'releases removed')
    } catch (error) {
      this.#o.log.error({ err: error }, 'nothing removed: not sure what is in use')
    }
  }

  async #watch(): Promise<void> {
    const { clock, log } = this.#o
    let superviseAtMs = 0
    while (!this.#stop.signal.aborted) {
      await clock.sleep(lookMs, this.#stop.signal).catch(() => {})
      this.#sight.look(this.#fetches.values(), clock.monotonic())
      try {
        if (clock.monotonic() >= superviseAtMs) {
          superviseAtMs = clock.monotonic() + superviseMs
          await this.#supervise()
        }
        if (summary(await this.#reports()) !== this.#seen) this.#tell()
      } catch (error) {
        log.error({ err: error }, 'places not looked after')
      }
    }
  }

  /** A place without a supervisor gets one. */
  async #supervise(): Promise<void> {
    for (const dir of await placeDirs(this.#placesDir)) {
      const place = PlaceClient.at(dir)
      if (!place.exists || this.#stop.signal.aborted) continue
      await place.ensure(this.#o.startSupervisor).catch((error: unknown) => {
        this.#o.log.error({ place: basename(dir), err: error }, 'place not supervised')
      })
    }
  }

  #reports(): Promise<GoalReport[]> {
    const { goals } = this.#o
    return Promise.all(
      goals.accepted.map(async (goal) => {
        const place = this.#place(goal)
        const status: PlaceStatus | undefined = place.exists ? await place.status() : undefined
        const key = goalKey(goal)
        const refusal = goals.refusals.find((other) => goalKey(other) === key)
        const handOver = this.#handOvers.get(key)
        return reportGoal({ goal, progress: this.#progress(goal), place: status, refusal, handOver })
      }),
    )
  }

  #progress(goal: GoalPayload): FetchProgress {
    const effective = this.#fetches.get(releaseName(goal.template.artifact))
    const previous = goal.previous && this.#fetches.get(releaseName(goal.previous.template.artifact))
    // A last good release that can't be had must not keep the machine from the next.
    const previousSettled = !previous || previous.complete || previous.problem !== undefined
    return {
      fetched: (effective?.complete ?? false) && previousSettled,
      started: effective !== undefined,
      fetchedBytes: effective?.fetchedBytes ?? 0,
      fetchMs: effective?.fetchMs,
      problem: effective?.complete ? undefined : effective?.problem,
    }
  }

  #seeded(): number {
    return [...this.#fetches.values()].filter((fetch) => fetch.complete).length
  }

  #place(goal: GoalPayload): PlaceClient {
    return PlaceClient.of(this.#placesDir, goal.place)
  }

  #tell(): void {
    this.#news.resolve()
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#stop.abort()
    await this.#watching
    await Promise.all([...this.#fetches.values()].map((fetch) => fetch[Symbol.asyncDispose]()))
  }
}

/** By the labels of its enrolment. */
function locationOf({ labels, cluster }: Membership): Location {
  const zone = labels['topology.kubernetes.io/zone'] ?? cluster
  const rack = labels['shoal.dev/rack']
  return { ...(zone !== undefined && { zone }), ...(rack !== undefined && { rack }) }
}

const summary = (reports: GoalReport[]): string =>
  JSON.stringify(
    reports.map(({ name, state, running, revision, grantId }) => [name, state, running, revision, grantId]),
  )
