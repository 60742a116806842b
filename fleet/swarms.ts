import { ShoalError, Transient } from '../api/errors.ts'
import type { AnnounceAnswer, AnnounceRequest } from '../api/fleetApi.ts'
import { mostPieces } from '../api/torrent.ts'
import type { Template } from '../rollout/envelope.ts'
import type { Clock } from '../runtime/clock.ts'
import type { Metrics } from '../runtime/metrics.ts'
import type { Database } from '../runtime/sql.ts'
import { type LeaseRequest, OriginLeases } from '../swarm/originLeases.ts'
import type { Reach } from '../swarm/reach.ts'
import { Tracker } from '../swarm/tracker.ts'
import { SpreadNotes } from './spread.ts'
import { swarmKey, type TrackerHolder } from './trackerHolder.ts'

const presignSeconds = 600
const noteEveryMs = 3000

interface OriginStore {
  presignGet(key: string, expiresSeconds: number): Promise<{ url: string; expiresAtMs: number }>
}

export interface SwarmsOptions {
  database: Database
  holder: TrackerHolder
  secret: Buffer
  /** The region's own bucket, as far as machines need it; undefined until the hub has said where it is. */
  store: () => OriginStore | undefined
  clock: Clock
  metrics: Metrics
  announceMs: number
  originLeaseMs: number
}

/** The region's swarms, on the replica that is tracker: who takes part in which, and who may read the bucket. */
export class Swarms {
  readonly #o: SwarmsOptions
  readonly #tracker: Tracker
  readonly #leases: OriginLeases
  readonly #originBytes
  readonly #notes: SpreadNotes
  readonly #pieceCounts = new Map<string, number>()
  #notedMs = 0

  constructor(o: SwarmsOptions) {
    this.#o = o
    this.#tracker = new Tracker({ intervalMs: o.announceMs })
    this.#leases = new OriginLeases({ tracker: this.#tracker, leaseMs: o.originLeaseMs })
    this.#notes = new SpreadNotes(o.database)
    this.#originBytes = o.metrics.counter('origin_read_bytes_total', 'Bytes machines read from the region’s bucket.')
  }

  /**
   * @throws Transient `Unavailable` on a replica that is not the tracker; ShoalError `Invalid` for more pieces than the
   * signed size can have: pieces are counted, and kept, by what machines say.
   */
  async announce(machine: string, artifact: Template['artifact'], announce: AnnounceRequest): Promise<AnnounceAnswer> {
    const { holder, secret, clock } = this.#o
    if (!holder.isHolder) throw new Transient('Unavailable', 'this replica is not the tracker any more')
    const { infoHash } = artifact
    const { havePieces, totalPieces, fromPeersBytes, originBytes, left } = announce
    if (totalPieces > mostPieces(artifact.sizeBytes))
      throw new ShoalError('Invalid', `${artifact.name} can not have ${totalPieces} pieces`)
    if (originBytes > 0) this.#originBytes.inc(originBytes)
    const key = swarmKey(secret, artifact.descriptorDigest).toString('base64')
    if (left) {
      this.#tracker.forget(infoHash, machine)
      this.#leases.release(infoHash, machine)
      return { key, peers: [], intervalMs: this.#o.announceMs, seed: false }
    }
    const nowMs = clock.monotonic()
    this.#pieceCounts.set(infoHash, totalPieces)
    const { host, port, zone, rack, connected, resting, pieces } = announce
    const { peers, intervalMs, seed } = this.#tracker.announce(
      {
        ...{ infoHash, machine, host, port, zone, rack, connected, resting },
        reads: this.#leases.reads(infoHash, machine, totalPieces),
        completed: havePieces >= totalPieces,
        pieceCount: totalPieces,
        pieces: pieces === undefined ? undefined : Buffer.from(pieces, 'base64'),
      },
      nowMs,
    )
    const progress = fromPeersBytes ?? havePieces
    const origin = await this.#origin(artifact, { infoHash, machine, havePieces, totalPieces, progress }, nowMs)
    if (!origin) return { key, peers, intervalMs, seed }
    return { key, peers, intervalMs: Math.min(intervalMs, this.#tracker.readerMs), seed, origin }
  }

  /** Who has just taken over knows neither what the swarm has nor what is lent. */
  async #origin(
    { key }: Template['artifact'],
    request: LeaseRequest,
    nowMs: number,
  ): Promise<AnnounceAnswer['origin']> {
    const { holder, originLeaseMs } = this.#o
    const store = this.#o.store()
    if (!store || holder.heldMs <= originLeaseMs) return undefined
    const pieces = this.#leases.request(request, nowMs)
    if (pieces.length === 0) return undefined
    return { ...(await store.presignGet(key, presignSeconds)), forMs: originLeaseMs, pieces }
  }

  /** Drops swarms that nobody was heard of in, and writes down how far the others have come. */
  async tend(): Promise<void> {
    const nowMs = this.#o.clock.monotonic()
    this.#tracker.expire(nowMs)
    if (!this.#o.holder.isHolder || nowMs - this.#notedMs < noteEveryMs) return
    this.#notedMs = nowMs
    const reaches = new Map<string, Reach>()
    for (const [infoHash, pieceCount] of this.#pieceCounts) {
      const reach = this.#tracker.reach(infoHash, pieceCount)
      if (reach) reaches.set(infoHash, reach)
      else this.#pieceCounts.delete(infoHash)
    }
    await this.#notes.note(reaches, nowMs)
  }
}
