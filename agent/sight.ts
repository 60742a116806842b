import type { SwarmView } from '../api/agentApi.ts'
import type { Metrics } from '../runtime/metrics.ts'
import { Speed } from '../swarm/rate.ts'
import type { ReleaseFetch } from './fetch.ts'

const states = ['Waiting', 'Fetching', 'Seeding', 'Resting'] as const
/** Slower than this, nobody can say how long it takes. */
const leastBytesPerSecond = 1000

interface Seen {
  received: Speed
  sent: Speed
  totals: ReturnType<ReleaseFetch['totals']>
}

/** What this machine's swarms carry: each by itself for who asks, all together as metrics. */
export class Sight {
  readonly #seen = new WeakMap<ReleaseFetch, Seen>()
  readonly #received
  readonly #sent
  readonly #wasted
  readonly #missing
  readonly #peers
  readonly #releases

  constructor(metrics: Metrics) {
    this.#received = metrics.counter('swarm_received_bytes_total', 'What releases were made of, by source.', ['source'])
    this.#sent = metrics.counter('swarm_sent_bytes_total', 'Sent to peers.')
    this.#wasted = metrics.counter('swarm_wasted_bytes_total', 'Came from peers or the bucket, and was of no use.')
    this.#missing = metrics.gauge('swarm_missing_bytes', 'Of the releases this machine is to have.')
    this.#peers = metrics.gauge('swarm_peers', 'Connections to peers, of all swarms.')
    this.#releases = metrics.gauge('swarm_releases', 'Releases this machine is to have, by state.', ['state'])
  }

  /** Call every half second or so. */
  look(fetches: Iterable<ReleaseFetch>, nowMs: number): void {
    const views: SwarmView[] = []
    for (const fetch of fetches) {
      const totals = fetch.totals()
      const seen = this.#seenOf(fetch, nowMs)
      const since = (key: keyof typeof totals) => Math.max(0, totals[key] - seen.totals[key])
      this.#received.inc({ source: 'peers' }, since('fromPeersBytes'))
      this.#received.inc({ source: 'origin' }, since('fromOriginBytes'))
      this.#received.inc({ source: 'local' }, since('fromLocalBytes'))
      this.#sent.inc(since('sentBytes'))
      this.#wasted.inc(since('wastedBytes'))
      seen.received.add(since('fromPeersBytes') + since('fromOriginBytes'))
      seen.sent.add(since('sentBytes'))
      for (const speed of [seen.received, seen.sent]) speed.tick(nowMs)
      seen.totals = totals
      views.push(this.view(fetch, nowMs))
    }
    this.#missing.set(views.reduce((sum, { sizeBytes, haveBytes }) => sum + sizeBytes - haveBytes, 0))
    this.#peers.set(views.reduce((sum, { peers }) => sum + peers, 0))
    for (const state of states) this.#releases.set({ state }, views.filter((view) => view.state === state).length)
  }

  view(fetch: ReleaseFetch, nowMs: number): SwarmView {
    const { received, sent } = this.#seenOf(fetch, nowMs)
    const { artifact, fetchedBytes: haveBytes, problem } = fetch
    const missingBytes = artifact.sizeBytes - haveBytes
    const receivedBytesPerSecond = Math.round(received.bytesPerSecond)
    return {
      ...{ namespace: fetch.namespace, artifact: artifact.name, infoHash: artifact.infoHash, state: fetch.state },
      ...{ sizeBytes: artifact.sizeBytes, haveBytes, peers: fetch.peers },
      ...{ receivedBytesPerSecond, sentBytesPerSecond: Math.round(sent.bytesPerSecond) },
      ...fetch.totals(),
      ...(missingBytes > 0 &&
        receivedBytesPerSecond > leastBytesPerSecond && {
          secondsLeft: Math.ceil(missingBytes / receivedBytesPerSecond),
        }),
      ...problem,
    }
  }

  #seenOf(fetch: ReleaseFetch, nowMs: number): Seen {
    let seen = this.#seen.get(fetch)
    if (!seen) {
      const nothing = { fromPeersBytes: 0, fromOriginBytes: 0, fromLocalBytes: 0, wastedBytes: 0, sentBytes: 0 }
      seen = { received: new Speed(nowMs), sent: new Speed(nowMs), totals: nothing }
      this.#seen.set(fetch, seen)
    }
    return seen
  }
}
