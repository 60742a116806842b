/**
 * A swarm in simulated time: the real picker, the real tracker and its origin leases, on machines whose links are
 * queues of bytes. What is left out: blocks (a piece is one message), the choker, passing on of pieces that are not
 * whole yet, and the time of CPUs and disks. A piece takes its turn on the sender's link and then on the receiver's,
 * so a slow receiver holds up nobody else. Who dies falls silent: what was asked of it never comes.
 * The same seed gives the same run.
 */
import { mostActive } from '../../swarm/activePieces.ts'
import { OriginLeases } from '../../swarm/originLeases.ts'
import { Spread } from '../../swarm/spread.ts'
import { Tracker } from '../../swarm/tracker.ts'
import { Events } from './events.ts'
import { type Link, Machine } from './machine.ts'
import { random as randomOf } from './xorshift.ts'

export interface SimulationOptions {
  seed: number
  machines: number
  sizeBytes: number
  pieceLengthBytes: number
  bytesPerSecond: number
  zones: number
  machinesPerRack: number
  /** All start within this. */
  startWithinMs: number
  /** Of the machines, those that die on the way, and those whose link is a tenth. */
  dying: number
  slow: number
  /** What one connection to the bucket gives. */
  originBytesPerSecond: number
  /** Four times a simulated second. */
  onProgress?: (o: { simulatedMs: number; complete: number; gotBytes: number }) => void
}

export interface SimulationResult {
  /** How long each surviving machine took from its own start, rising. */
  fastMs: number[]
  slowMs: number[]
  originCopies: number
  /** Of all bytes between machines, those that crossed zones. */
  crossZone: number
  /** Came twice, of all. */
  wasted: number
  peersPerMachine: number
  events: number
}

const [START, ANNOUNCE, SENT, ARRIVE, ORIGIN, TICK] = [0, 1, 2, 3, 4, 5]
const LATENCY_MS = { near: 0.2, far: 1 }
/** As in swarm/. */
const MAX_DIALLED = 24
const MAX_ACCEPTED = 40
const PIPELINE_MS = 300
const MAX_PIPELINE_BYTES = 8 << 20
const LATE_MS = 500
const BLOCK_TIMEOUT_MS = { times: 20, least: 2000, most: 15_000 }
const TICK_MS = 250
const FAR_PATIENCE_MS = 2000
const ORIGIN_READS = 4
const ORIGIN_PATIENCE_MS = 5000
const FILL_TURNS = 3
const MAX_FAR = 1
const LEASE_MS = 5000
const OVERDUE_MS = 2000
const LEAST_ANNOUNCE_MS = 250
const INFO_HASH = '0'.repeat(40)

export class SwarmSimulation {
  readonly #o: SimulationOptions
  readonly #random: () => number
  readonly #events = new Events()
  readonly #machines: Machine[] = []
  readonly #tracker: Tracker
  readonly #leases: OriginLeases
  readonly #pieceCount: number
  readonly #maxActive: number
  #left: number
  #originBytes = 0
  #peerBytes = 0
  #farBytes = 0
  #wastedBytes = 0
  #count = 0

  constructor(o: SimulationOptions) {
    this.#o = o
    const random = randomOf(o.seed)
    this.#random = random
    this.#tracker = new Tracker({ random })
    this.#leases = new OriginLeases({ tracker: this.#tracker, leaseMs: LEASE_MS })
    this.#pieceCount = Math.ceil(o.sizeBytes / o.pieceLengthBytes)
    this.#maxActive = mostActive(o.pieceLengthBytes)
    const floorMs = (o.sizeBytes / o.bytesPerSecond) * 1000
    for (let index = 0; index < o.machines; index++) {
      const slow = random() < o.slow
      const machine = new Machine({
        index,
        zone: `zone-${index % o.zones}`,
        rack: `rack-${Math.floor(index / o.zones / o.machinesPerRack)}`,
        bytesPerMs: o.bytesPerSecond / 1000 / (slow ? 10 : 1),
        slow,
        pieceCount: this.#pieceCount,
        random,
      })
      machine.startMs = random() * o.startWithinMs
      if (random() < o.dying) machine.deadMs = machine.startMs + random() * floorMs
      this.#machines.push(machine)
      this.#events.add(machine.startMs, START, index)
    }
    this.#left = this.#machines.filter((machine) => machine.deadMs === Number.POSITIVE_INFINITY).length
  }

  /** Until every survivor has everything. @throws when nothing more can happen before that. */
  run(): SimulationResult {
    const { onProgress } = this.#o
    let reportMs = 0
    while (this.#left > 0) {
      if (!this.#events.next()) throw new Error(`${this.#left} machines of seed ${this.#o.seed} never finish`)
      if (++this.#count % 1_000_000 === 0 && this.#events.nowMs > 3_600_000)
        throw new Error(`${this.#left} machines of seed ${this.#o.seed} are not done within an hour`)
      if (onProgress && this.#events.nowMs >= reportMs) {
        reportMs = this.#events.nowMs + 250
        onProgress({
          simulatedMs: this.#events.nowMs,
          complete: this.#machines.filter((machine) => machine.complete).length,
          gotBytes: this.#peerBytes + this.#originBytes,
        })
      }
      this.#handle()
    }
    return this.#result()
  }

  #result(): SimulationResult {
    const tookMs = (slow: boolean) =>
      this.#machines
        .filter((machine) => machine.slow === slow && !Number.isNaN(machine.doneMs) && machine.doneMs < machine.deadMs)
        .map((machine) => machine.doneMs - machine.startMs)
        .sort((a, b) => a - b)
    return {
      fastMs: tookMs(false),
      slowMs: tookMs(true),
      originCopies: this.#originBytes / this.#o.sizeBytes,
      crossZone: this.#farBytes / Math.max(1, this.#peerBytes),
      wasted: this.#wastedBytes / Math.max(1, this.#peerBytes),
      peersPerMachine: this.#machines.reduce((sum, machine) => sum + machine.links.length, 0) / this.#machines.length,
      events: this.#count,
    }
  }

  #handle(): void {
    const { nowMs, kind, detail } = this.#events
    const machine = this.#machines[this.#events.machine]
    if (!machine || nowMs >= machine.deadMs) return
    if (kind === START) {
      machine.lastGainMs = machine.lastNearMs = nowMs
      this.#announce(machine)
      this.#events.add(nowMs + TICK_MS * this.#random(), TICK, machine.index)
    } else if (kind === ANNOUNCE) {
      if (nowMs === machine.announceMs) this.#announce(machine)
    } else if (kind === SENT) this.#sent(machine, detail)
    else if (kind === ARRIVE) this.#arrive(machine, detail)
    else if (kind === ORIGIN) this.#arriveFromOrigin(machine, detail)
    else this.#tick(machine)
  }

  #tick(machine: Machine): void {
    if (machine.complete && !machine.spread) return
    if (!machine.complete) {
      this.#snub(machine)
      this.#endgame(machine)
      this.#fill(machine)
      this.#readOrigin(machine)
    }
    for (const { peer } of machine.spread ? machine.links : []) this.#offer(machine, peer)
    this.#events.add(this.#events.nowMs + TICK_MS, TICK, machine.index)
  }

  #announce(machine: Machine): void {
    const { nowMs } = this.#events
    machine.announcedMs = nowMs
    const { had } = machine.picker
    const { peers, intervalMs } = this.#tracker.announce(
      {
        infoHash: INFO_HASH,
        machine: machine.name,
        host: '',
        port: machine.index,
        zone: machine.zone,
        rack: machine.rack,
        completed: machine.complete,
        reads: this.#leases.reads(INFO_HASH, machine.name, this.#pieceCount),
        connected: machine.links.length,
        pieces: had.bytes,
        pieceCount: this.#pieceCount,
      },
      nowMs,
    )
    const lent = this.#leases.request(
      {
        ...{ infoHash: INFO_HASH, machine: machine.name, progress: had.count },
        ...{ havePieces: had.count, totalPieces: this.#pieceCount },
      },
      nowMs,
    )
    const since = machine.lease?.pieces
    const pieces = new Map(lent.map((index) => [index, since?.get(index) ?? nowMs]))
    machine.lease = { pieces, untilMs: nowMs + LEASE_MS }
    if (lent.length === 0) machine.spread?.end()
    for (const { port } of peers) {
      const peer = this.#machines[port]
      if (peer) machine.addresses.push(peer)
    }
    this.#dial(machine)
    this.#fill(machine)
    this.#readOrigin(machine)
    this.#announceIn(machine, lent.length > 0 ? Math.min(intervalMs, this.#tracker.readerMs) : intervalMs)
  }

  #announceIn(machine: Machine, waitMs: number): void {
    machine.announceMs = this.#events.nowMs + waitMs
    this.#events.add(machine.announceMs, ANNOUNCE, machine.index)
  }

  #dial(machine: Machine): void {
    while (machine.dialled < MAX_DIALLED && !machine.complete) {
      const peer = machine.addresses.pop()
      if (!peer) return
      const refused = this.#events.nowMs >= peer.deadMs || peer.accepted >= MAX_ACCEPTED || machine.linkTo(peer)
      if (refused) continue
      machine.dialled++
      peer.accepted++
      const near = machine.zone === peer.zone
      const link = { near, asked: 0, tookMs: 0, nothingAt: -1, lastMs: 0, snubbed: false }
      const here: Link = { ...link, peer, fresh: [], dialled: true, back: undefined }
      const there: Link = { ...link, peer: machine, fresh: [], dialled: false, back: here }
      here.back = there
      machine.links.push(here)
      peer.links.push(there)
      learn(machine, peer, near)
      learn(peer, machine, near)
      machine.spread?.joined(peer)
      peer.spread?.joined(machine)
      this.#fill(peer)
    }
  }

  /** Asks peers for as much as is to be under way: of two of them, the one that answers sooner. */
  #fill(machine: Machine): void {
    const { links } = machine
    const room = () => machine.fetches.size + machine.originReads < this.#maxActive
    const anyOf = () => links[Math.floor(this.#random() * links.length)]
    for (let turn = 0; turn < FILL_TURNS && room(); turn++) {
      const [one, other] = [anyOf(), anyOf()]
      if (one && other)
        this.#ask(machine, one.tookMs * (one.asked + 1) < other.tookMs * (other.asked + 1) ? one : other)
    }
    for (let i = 0; i < links.length && room(); i++) {
      machine.turn = (machine.turn + 1) % links.length
      const link = links[machine.turn]
      if (link) this.#ask(machine, link)
    }
  }

  #ask(machine: Machine, link: Link): void {
    const { picker } = machine
    if (link.snubbed || (link.nothingAt === picker.version && link.fresh.length === 0)) return
    const patient = this.#events.nowMs - machine.lastNearMs < FAR_PATIENCE_MS
    if (!link.near && patient && machine.farFetches >= MAX_FAR) return
    const {
      picker: { had },
      spread,
    } = link.peer
    const shown = spread
      ? (index: number) => had.has(index) && spread.told(machine, index)
      : (index: number) => had.has(index)
    const offered = link.near || !patient ? shown : (index: number) => shown(index) && !picker.isNear(index)
    while (
      machine.fetches.size + machine.originReads < this.#maxActive &&
      link.asked < this.#window(link) &&
      (link.near || !patient || machine.farFetches < MAX_FAR)
    ) {
      const known = link.nothingAt === picker.version
      if (!known) link.fresh.length = 0
      const index = known ? picker.takeOneOf(link.fresh, offered) : picker.take(offered, { atLeast: 1 })
      if (index === undefined) {
        link.nothingAt = picker.version
        link.fresh.length = 0
        return
      }
      machine.fetches.set(index, { from: [link.peer], askedMs: this.#events.nowMs })
      this.#send(machine, link, index)
    }
  }

  #window({ tookMs }: Link): number {
    const most = Math.max(1, MAX_PIPELINE_BYTES / this.#o.pieceLengthBytes)
    return tookMs === 0 ? 1 : Math.min(most, Math.max(1, Math.floor(PIPELINE_MS / tookMs)))
  }

  #sizeOf(index: number): number {
    return Math.min(this.#o.pieceLengthBytes, this.#o.sizeBytes - index * this.#o.pieceLengthBytes)
  }

  /** The piece takes its turn on both links. */
  #send(machine: Machine, link: Link, index: number): void {
    const { nowMs } = this.#events
    const { peer } = link
    const sizeBytes = this.#sizeOf(index)
    const latencyMs = link.near ? LATENCY_MS.near : LATENCY_MS.far
    const sentMs = Math.max(nowMs + latencyMs, peer.upFreeMs) + sizeBytes / peer.bytesPerMs
    link.asked++
    if (!link.near) machine.farFetches++
    // never comes
    if (sentMs > peer.deadMs) return
    peer.upFreeMs = sentMs
    this.#events.add(sentMs + latencyMs, SENT, machine.index, index * 2 ** 16 + machine.links.indexOf(link))
  }

  /** All of it is at the receiver's link, which may be busy or slower. */
  #sent(machine: Machine, detail: number): void {
    const sizeBytes = this.#sizeOf(Math.floor(detail / 2 ** 16))
    machine.downFreeMs = Math.max(this.#events.nowMs, machine.downFreeMs + sizeBytes / machine.bytesPerMs)
    this.#events.add(machine.downFreeMs, ARRIVE, machine.index, detail)
  }

  #arrive(machine: Machine, detail: number): void {
    const index = Math.floor(detail / 2 ** 16)
    const link = machine.links[detail % 2 ** 16]
    if (!link) return
    const sizeBytes = this.#sizeOf(index)
    link.asked--
    link.lastMs = this.#events.nowMs
    link.snubbed = false
    if (!link.near) machine.farFetches--
    link.tookMs = this.#events.nowMs - (machine.fetches.get(index)?.askedMs ?? 0)
    this.#peerBytes += sizeBytes
    if (!link.near) this.#farBytes += sizeBytes
    if (link.near) machine.lastNearMs = this.#events.nowMs
    if (machine.picker.had.has(index)) this.#wastedBytes += sizeBytes
    else this.#gained(machine, index)
    if (!machine.complete) this.#fill(machine)
  }

  #gained(machine: Machine, index: number): void {
    machine.fetches.delete(index)
    machine.picker.gained(index)
    machine.lastGainMs = this.#events.nowMs
    for (const link of machine.links) {
      if (link.peer.spread) {
        link.peer.spread.gained(machine, index)
        this.#offer(link.peer, machine)
      }
      this.#tell(link, index)
    }
    this.#completed(machine)
  }

  /** The other end of a link hears that this one has a piece. */
  #tell({ peer, back, near }: Link, index: number): void {
    if (peer.complete || !back) return
    peer.picker.peerHas(index, near)
    if (back.nothingAt === peer.picker.version && back.fresh.push(index) > 16) back.nothingAt = -1
    if (peer.fetches.size + peer.originReads < this.#maxActive && this.#events.nowMs < peer.deadMs)
      this.#ask(peer, back)
  }

  #offer(machine: Machine, peer: Machine): void {
    const { spread } = machine
    if (!spread || this.#events.nowMs >= machine.deadMs) return
    spread.offer(peer, machine.upFreeMs <= this.#events.nowMs)
    if (!spread.over) return
    for (const link of machine.links) spread.offer(link.peer, false)
    machine.spread = undefined
  }

  #spreadOf(machine: Machine): Spread<Machine> {
    machine.spread ??= new Spread<Machine>({
      pieces: [],
      random: this.#random,
      nowMs: () => this.#events.nowMs,
      isWithPeers: (index) => machine.links.some(({ peer }) => peer.picker.had.has(index)),
      has: (peer, index) => peer.picker.had.has(index),
      tell: (peer, index) => {
        const link = machine.linkTo(peer)
        if (link) this.#tell(link, index)
      },
    })
    return machine.spread
  }

  #completed(machine: Machine): void {
    if (!machine.picker.had.full) return
    machine.complete = true
    machine.doneMs = this.#events.nowMs
    if (machine.deadMs === Number.POSITIVE_INFINITY) this.#left--
    this.#announceIn(machine, 0)
  }

  /** What was asked of one who sends nothing is asked of others. */
  #snub(machine: Machine): void {
    for (const [index, { from, askedMs }] of machine.fetches) {
      const link = machine.links.find(({ peer }) => peer === from.at(-1))
      if (!link) continue
      const silentMs = this.#events.nowMs - Math.max(askedMs, link.lastMs)
      const bound = link.tookMs === 0 ? BLOCK_TIMEOUT_MS.most : BLOCK_TIMEOUT_MS.times * link.tookMs
      if (silentMs <= Math.min(BLOCK_TIMEOUT_MS.most, Math.max(BLOCK_TIMEOUT_MS.least, bound))) continue
      link.snubbed = true
      machine.fetches.delete(index)
      machine.picker.putBack(index)
    }
  }

  /** What one peer is late with is asked of another, once nothing is left to begin. */
  #endgame(machine: Machine): void {
    if (!machine.picker.exhausted) return
    for (const [index, fetch] of machine.fetches) {
      if (this.#events.nowMs - fetch.askedMs < LATE_MS || fetch.from.length > 2) continue
      const other = machine.links.find(
        (link) => link.asked === 0 && !fetch.from.includes(link.peer) && link.peer.picker.had.has(index),
      )
      if (!other) continue
      fetch.from.push(other.peer)
      fetch.askedMs = this.#events.nowMs
      this.#send(machine, other, index)
    }
  }

  #readOrigin(machine: Machine): void {
    const { nowMs } = this.#events
    const { lease, picker } = machine
    if (!lease || nowMs >= lease.untilMs) return
    const patient = nowMs - machine.lastGainMs < ORIGIN_PATIENCE_MS
    const mayRead = (index: number) => {
      const lentMs = lease.pieces.get(index)
      if (lentMs === undefined) return false
      return !patient || nowMs - lentMs > OVERDUE_MS || picker.availability(index) === 0
    }
    while (machine.originReads < ORIGIN_READS) {
      const index = picker.take(mayRead)
      if (index === undefined) {
        if (machine.originReads === 0 && machine.readsLease) this.#drained(machine)
        return
      }
      machine.readsLease = true
      machine.originReads++
      const sizeBytes = this.#sizeOf(index)
      const readMs = nowMs + LATENCY_MS.far + (sizeBytes / this.#o.originBytesPerSecond) * 1000
      machine.downFreeMs = Math.max(readMs, machine.downFreeMs + sizeBytes / machine.bytesPerMs)
      this.#events.add(machine.downFreeMs, ORIGIN, machine.index, index)
    }
  }

  /** It asks for more. */
  #drained(machine: Machine): void {
    machine.readsLease = false
    this.#announceIn(machine, Math.max(0, machine.announcedMs + LEAST_ANNOUNCE_MS - this.#events.nowMs))
  }

  #arriveFromOrigin(machine: Machine, index: number): void {
    machine.originReads--
    this.#originBytes += this.#sizeOf(index)
    machine.picker.gained(index)
    machine.lastGainMs = this.#events.nowMs
    const fresh = machine.spread === undefined
    const spread = this.#spreadOf(machine)
    spread.add(index)
    for (const { peer } of machine.links) {
      if (fresh) spread.joined(peer)
      this.#offer(machine, peer)
    }
    this.#completed(machine)
    this.#readOrigin(machine)
    this.#fill(machine)
  }
}

/** A new connection: what the other end has. */
function learn(machine: Machine, peer: Machine, near: boolean): void {
  const { had } = peer.picker
  if (had.count === 0) return
  for (let index = 0; index < had.size; index++)
    if (had.has(index) && !peer.spread?.covers(index)) machine.picker.peerHas(index, near)
}
