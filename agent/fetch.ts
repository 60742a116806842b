import { randomBytes } from 'node:crypto'
import { rm } from 'node:fs/promises'
import type { Descriptor } from '../api/descriptor.ts'
import { ShoalError } from '../api/errors.ts'
import type { AnnounceAnswer } from '../api/fleetApi.ts'
import type { Template } from '../rollout/envelope.ts'
import type { Clock } from '../runtime/clock.ts'
import type { Logger } from '../runtime/log.ts'
import type { SwarmNode } from '../swarm/node.ts'
import type { Swarm } from '../swarm/swarm.ts'
import type { FleetClient } from './fleet.ts'
import { OriginLease } from './origin.ts'
import type { Release } from './releases.ts'

const retryMs = { first: 1000, last: 60_000 }
const farewellMs = 2000

export interface FetchOptions {
  namespace: string
  release: Release
  node: SwarmNode
  /** Where peers reach the node. */
  address: string
  fleet: FleetClient
  clock: Clock
  log: Logger
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
  #wake: () => void = () => {}
  /** Why the last try failed. */
  problem: { reason: string; message: string } | undefined

  constructor(options: FetchOptions) {
    this.#o = options
    this.#running = this.#run()
  }

  get artifact(): Template['artifact'] {
    return this.#o.release.artifact
  }

  get complete(): boolean {
    return this.#o.release.complete
  }

  get fetchedBytes(): number {
    return this.complete ? this.artifact.sizeBytes : (this.#swarm?.have().bytes ?? 0)
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
      } catch (error) {
        if (signal.aborted) return
        const reason = error instanceof ShoalError ? error.code : 'Internal'
        this.problem = { reason, message: (error as Error).message }
        log.error({ artifact: release.artifact.name, err: error }, 'fetch failed')
        this.#o.onChange()
        await clock.sleep(waitMs * (0.5 + Math.random()), signal).catch(() => {})
      }
    }
  }

  async #attempt(signal: AbortSignal): Promise<void> {
    const { namespace, release, fleet, node } = this.#o
    const descriptor = await release.descriptor(() => fleet.descriptor(namespace, release.artifact.name, signal))
    await release.create()
    if (!release.complete) {
      await this.#o.makeRoom()
      await release.ensureSpace()
    }
    const origin = new OriginLease(descriptor)
    const answer = await this.#announce(descriptor, origin, signal)
    const swarm = await node.open({
      torrent: descriptor,
      dir: release.files,
      stateFile: release.stateFile,
      key: Buffer.from(answer.key, 'base64'),
      peerId: this.#peerId,
      signal,
    })
    this.#swarm = swarm
    try {
      this.problem = undefined
      if (release.complete && swarm.missing().length > 0) await release.reopen()
      const finished = swarm.done.then(() => this.#finish())
      await Promise.race([this.#takePart({ descriptor, swarm, origin, first: answer }, signal), untilFailed(finished)])
    } catch (error) {
      // The state may promise what a full disk did not take.
      if (error instanceof ShoalError && error.code === 'DiskFull') await rm(release.stateFile, { force: true })
      throw error
    } finally {
      this.#swarm = undefined
      await swarm[Symbol.asyncDispose]()
      await this.#leave(descriptor, origin)
    }
  }

  async #finish(): Promise<void> {
    if (!this.#o.release.complete) await this.#o.release.finish()
    this.#o.log.info({ artifact: this.artifact.name, ...this.#swarm?.stats() }, 'release complete')
    this.#o.onChange()
    this.#wake()
  }

  /** Announces again and again; returns when the swarm's key has changed. */
  async #takePart(
    o: { descriptor: Descriptor; swarm: Swarm; origin: OriginLease; first: AnnounceAnswer },
    signal: AbortSignal,
  ): Promise<void> {
    const { clock, log } = this.#o
    let answer: AnnounceAnswer | undefined = o.first
    let intervalMs = answer.intervalMs
    let lent = false
    while (!signal.aborted) {
      if (answer?.key !== undefined && answer.key !== o.first.key) return
      if (answer) o.swarm.addPeers(answer.peers)
      // Given to the swarm once per lease: giving it again would abort the reads under way.
      if (o.origin.held !== lent) {
        lent = o.origin.held
        o.swarm.setOrigin(lent ? o.origin : undefined)
      }
      const waitMs = intervalMs * (0.9 + 0.2 * Math.random())
      const wakeMs = lent ? Math.min(waitMs, o.origin.leftMs + 1) : waitMs
      const woken = Promise.withResolvers<void>()
      this.#wake = woken.resolve
      await Promise.race([clock.sleep(wakeMs, signal), woken.promise])
      answer = await this.#announce(o.descriptor, o.origin, signal).catch((error: unknown) => {
        if (!signal.aborted) log.info({ artifact: this.artifact.name, err: error }, 'announce not answered')
        return undefined
      })
      intervalMs = answer?.intervalMs ?? intervalMs
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
    return {
      namespace: this.#o.namespace,
      artifact: this.artifact.name,
      infoHash: descriptor.infoHash,
      peerId: this.#peerId.toString('hex'),
      host: this.#o.address,
      port: this.#o.node.port,
      havePieces: this.#swarm?.have().pieces ?? (this.complete ? descriptor.pieceCount : 0),
      totalPieces: descriptor.pieceCount,
      ...o,
    }
  }
}

/** Settles only with the failure. */
const untilFailed = (work: Promise<void>): Promise<never> => new Promise((_, reject) => work.catch(reject))
