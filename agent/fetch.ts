import { randomBytes } from 'node:crypto'
import { rm } from 'node:fs/promises'
import type { SwarmView } from '../api/agentApi.ts'
import type { Descriptor } from '../api/descriptor.ts'
import { ShoalError } from '../api/errors.ts'
import type { AnnounceAnswer } from '../api/fleetApi.ts'
import type { Template } from '../rollout/envelope.ts'
import type { Clock } from '../runtime/clock.ts'
import type { Logger } from '../runtime/log.ts'
import { asDiskError } from '../swarm/disk.ts'
import type { SwarmNode } from '../swarm/node.ts'
import type { Swarm, SwarmStats } from '../swarm/swarm.ts'
import type { FleetClient } from './fleet.ts'
import { OriginLease } from './origin.ts'
import type { Release } from './releases.ts'

type Totals = Pick<SwarmView, 'fromPeersBytes' | 'fromOriginBytes' | 'fromLocalBytes' | 'wastedBytes' | 'sentBytes'>

const retryMs = { first: 1000, last: 60_000 }
const farewellMs = 2000
/** Who has read all it was lent asks for more, but not more often. */
const leastAnnounceMs = 250

export interface Location {
  zone?: string
  rack?: string
}

export interface FetchOptions {
  namespace: string
  release: Release
  node: SwarmNode
  /** Where peers reach the node. */
  address: string
  /** Where this machine is: peers near it come first. */
  location: Location
  fleet: Pick<FleetClient, 'announce' | 'descriptor'>
  clock: Clock
  log: Logger
  /** Higher goes first. */
  priority: number
  /** Makes room before anything is written. */
  makeRoom(): Promise<void>
  onChange(): void
}

/** One release: fetched until it is whole, then given to others, until stopped. Every failure is retried. */
export class ReleaseFetch {
  readonly #o: FetchOptions
  readonly #stop = new AbortController()
  readonly #peerId = Buffer.concat([Buffer.from('-SH0100-'), randomBytes(12)])
  readonly #running: Promise<void>
  #swarm: Swarm | undefined
  /** Of swarms that were left. */
  #past: Totals = { fromPeersBytes: 0, fromOriginBytes: 0, fromLocalBytes: 0, wastedBytes: 0, sentBytes: 0 }
  #wake: () => void = () => {}
  #priority: number
  /** The last failure, until the release is whole. */
  #failure = ''
  /** How long it took, once it is whole. */
  fetchMs: number | undefined
  /** Why the last try failed. */
  problem: { reason: string; message: string } | undefined

  constructor(options: FetchOptions) {
    this.#o = options
    this.#priority = options.priority
    this.#running = this.#run()
  }

  get artifact(): Template['artifact'] {
    return this.#o.release.artifact
  }

  set priority(priority: number) {
    this.#priority = priority
    if (this.#swarm) this.#swarm.priority = priority
  }

  get complete(): boolean {
    return this.#o.release.complete
  }

  get fetchedBytes(): number {
    return this.complete ? this.artifact.sizeBytes : (this.#swarm?.have().bytes ?? 0)
  }

  get namespace(): string {
    return this.#o.namespace
  }

  get state(): SwarmView['state'] {
    if (this.complete) return this.#swarm ? 'Seeding' : 'Resting'
    return this.#swarm ? 'Fetching' : 'Waiting'
  }

  get peers(): number {
    return this.#swarm?.stats().peers ?? 0
  }

  /** What came and went since the agent started. */
  totals(): Totals {
    return this.#swarm ? sum(this.#past, this.#swarm.stats()) : this.#past
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#stop.abort()
    await this.#running
  }

  async #run(): Promise<void> {
    const { signal } = this.#stop
    const { clock, log, release } = this.#o
    for (let waitMs = retryMs.first; !signal.aborted; waitMs = Math.min(2 * waitMs, retryMs.last)) {
      try {
        await this.#attempt(signal)
      } catch (thrown) {
        if (signal.aborted) return
        const error = asDiskError(thrown)
        const reason = error instanceof ShoalError ? error.code : 'Internal'
        // a disk that stays full is said once
        const level = this.#failure === reason ? 'debug' : 'error'
        this.#failure = reason
        this.problem = { reason, message: (error as Error).message }
        log[level]({ artifact: release.artifact.name, err: error }, 'fetch failed')
        this.#o.onChange()
        await clock.sleep(waitMs * (0.5 + Math.random()), signal).catch(() => {})
      }
    }
  }

  async #attempt(signal: AbortSignal): Promise<void> {
    const { namespace, release, fleet } = this.#o
    this.fetchMs = await release.fetchMs()
    const descriptor = await release.descriptor(() => fleet.descriptor(namespace, release.artifact.name, signal))
    await release.create()
    if (!release.complete) {
      await this.#o.makeRoom()
      await release.ensureSpace()
    }
    const origin = new OriginLease(descriptor, () => this.#wake())
    const answer = await this.#announce(descriptor, origin, signal)
    if (release.complete && !answer.seed) await this.#rest(answer.intervalMs, signal)
    else await this.#swarmWith({ descriptor, origin, first: answer }, signal)
  }

  /** Others have it who need no help. */
  async #rest(intervalMs: number, signal: AbortSignal): Promise<void> {
    this.problem = undefined
    await this.#o.clock.sleep(jittered(intervalMs), signal)
  }

  /** Fetches and gives until nobody needs it, or the swarm's key has changed. */
  async #swarmWith(o: { descriptor: Descriptor; origin: OriginLease; first: AnnounceAnswer }, signal: AbortSignal) {
    const { release, node } = this.#o
    const swarm = await node.open({
      torrent: o.descriptor,
      dir: release.files,
      stateFile: release.stateFile,
      key: Buffer.from(o.first.key, 'base64'),
      zone: this.#o.location.zone,
      priority: this.#priority,
      peerId: this.#peerId,
      local: release.complete ? [] : await release.others(),
      signal,
    })
    this.#swarm = swarm
    let rests = false
    try {
      this.problem = undefined
      if (release.complete && swarm.missing().length > 0) await release.reopen()
      const finished = swarm.done.then(() => this.#finish())
      await Promise.race([this.#takePart({ ...o, swarm }, signal), untilFailed(finished)])
      rests = !signal.aborted
    } catch (error) {
      // The state may promise what a full disk did not take.
      if (error instanceof ShoalError && error.code === 'DiskFull') await rm(release.stateFile, { force: true })
      throw error
    } finally {
      this.#past = this.totals()
      this.#swarm = undefined
      await swarm[Symbol.asyncDispose]()
      if (!rests) await this.#leave(o.descriptor, o.origin)
    }
  }

  async #finish(): Promise<void> {
    if (!this.#o.release.complete) await this.#o.release.finish()
    this.fetchMs = await this.#o.release.fetchMs()
    this.#failure = ''
    this.#o.log.info({ artifact: this.artifact.name, ...this.#swarm?.stats() }, 'release complete')
    this.#o.onChange()
    this.#wake()
  }

  /** Announces again and again; returns when the swarm's key has changed, or nobody needs what is here whole. */
  async #takePart(
    o: { descriptor: Descriptor; swarm: Swarm; origin: OriginLease; first: AnnounceAnswer },
    signal: AbortSignal,
  ): Promise<void> {
    const { clock } = this.#o
    // a release that was here already is announced as one that rests, until now
    let answer = this.complete ? await this.#tryAnnounce(o, signal) : o.first
    let { intervalMs } = answer ?? o.first
    while (!signal.aborted) {
      if (answer && (answer.key !== o.first.key || (this.complete && !answer.seed))) return
      if (answer) o.swarm.addPeers(answer.peers)
      const lent = o.origin.held
      const announcedMs = performance.now()
      o.swarm.setOrigin(lent ? o.origin : undefined)
      const waitMs = jittered(intervalMs)
      const woken = Promise.withResolvers<void>()
      this.#wake = woken.resolve
      await Promise.race([clock.sleep(lent ? Math.min(waitMs, o.origin.leftMs + 1) : waitMs, signal), woken.promise])
      const soonMs = announcedMs + leastAnnounceMs - performance.now()
      if (soonMs > 0 && !this.complete) await clock.sleep(soonMs, signal).catch(() => {})
      answer = await this.#tryAnnounce(o, signal)
      intervalMs = answer?.intervalMs ?? intervalMs
    }
  }

  async #tryAnnounce(
    { descriptor, origin }: { descriptor: Descriptor; origin: OriginLease },
    signal: AbortSignal,
  ): Promise<AnnounceAnswer | undefined> {
    try {
      return await this.#announce(descriptor, origin, signal)
    } catch (error) {
      if (!signal.aborted) this.#o.log.info({ artifact: this.artifact.name, err: error }, 'announce not answered')
      return undefined
    }
  }

  async #announce(descriptor: Descriptor, origin: OriginLease, signal: AbortSignal): Promise<AnnounceAnswer> {
    const askedMs = performance.now()
    const originBytes = origin.takeReadBytes()
    try {
      const answer = await this.#o.fleet.announce(this.#announcement(descriptor, { originBytes, left: false }), signal)
      origin.renew(answer.origin, askedMs)
      return answer
    } catch (error) {
      origin.giveBack(originBytes)
      throw error
    }
  }

  async #leave(descriptor: Descriptor, origin: OriginLease): Promise<void> {
    const farewell = this.#announcement(descriptor, { originBytes: origin.takeReadBytes(), left: true })
    await this.#o.fleet.announce(farewell, AbortSignal.timeout(farewellMs)).catch(() => {})
  }

  #announcement(descriptor: Descriptor, o: { originBytes: number; left: boolean }) {
    const swarm = this.#swarm
    return {
      namespace: this.#o.namespace,
      artifact: this.artifact.name,
      infoHash: descriptor.infoHash,
      peerId: this.#peerId.toString('hex'),
      host: this.#o.address,
      port: this.#o.node.port,
      havePieces: swarm?.have().pieces ?? (this.complete ? descriptor.pieceCount : 0),
      totalPieces: descriptor.pieceCount,
      ...(swarm && !this.complete ? { pieces: Buffer.from(swarm.bitfield()).toString('base64') } : {}),
      ...this.#o.location,
      connected: swarm?.stats().peers ?? 0,
      fromPeersBytes: this.totals().fromPeersBytes,
      resting: this.complete && !swarm,
      ...o,
    }
  }
}

function sum(past: Totals, now: SwarmStats): Totals {
  return {
    fromPeersBytes: past.fromPeersBytes + now.downloadedFromPeersBytes,
    fromOriginBytes: past.fromOriginBytes + now.downloadedFromOriginBytes,
    fromLocalBytes: past.fromLocalBytes + now.takenFromLocalBytes,
    wastedBytes: past.wastedBytes + now.wastedBytes,
    sentBytes: past.sentBytes + now.uploadedBytes,
  }
}

const jittered = (ms: number) => ms * (0.9 + 0.2 * Math.random())

/** Settles only with the failure. */
const untilFailed = (work: Promise<void>): Promise<never> => new Promise((_, reject) => work.catch(reject))
