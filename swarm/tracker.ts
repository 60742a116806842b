import type { Address } from './addresses.ts'
import { Holdings } from './holdings.ts'
import { type Member, Members } from './members.ts'
import { type Reach, reachOf } from './reach.ts'

/** What a machine says of itself in one swarm. */
export interface Announce {
  infoHash: string
  /** One entry per machine: a restarted agent replaces itself. */
  machine: string
  host: string
  port: number
  /** Where it is, as far as anyone says: its peers are mostly of the same rack, then the same zone. */
  zone?: string | undefined
  rack?: string | undefined
  /** It has every piece. */
  completed: boolean
  /** Others wait for what it reads from the bucket. */
  reads?: boolean | undefined
  /** Complete, but nobody can connect to it until it is told to seed. */
  resting?: boolean | undefined
  /** How many peers it is connected to. */
  connected?: number | undefined
  /** Its pieces, as a BEP 3 bitfield. */
  pieces?: Uint8Array | undefined
  /** How many pieces there are; `pieces` is not read beyond it. */
  pieceCount?: number
}

export interface AnnounceAnswer {
  peers: Address[]
  /** When to announce again; jittered. */
  intervalMs: number
  /** Of one who has everything: whether others may need it. It may rest otherwise, until it is told again. */
  seed: boolean
}

/** How far the machines of a swarm are. */
export interface SwarmCounts {
  complete: number
  incomplete: number
  /** Of the complete, those who keep it for whoever comes later. */
  keepers: number
}

interface TrackerOptions {
  /** Peers in an answer. */
  handout?: number
  intervalMs?: number
  /** More machines announce less often, so that all announces stay below this. */
  announcesPerSecond?: number
  random?: () => number
}

/** Who has everything only needs to stay known. */
const SEED_INTERVALS = 6
const REST_INTERVALS = 30
/** Who has few peers hears of others sooner. */
const LONELY_INTERVALS = 0.5
const LONELY_CONNECTIONS = 4
/**
 * Who reads from the bucket is missed soon: all the others wait for what only a machine that lost its power had, until its
 * place in the swarm and its lease have run out.
 */
const READER_INTERVALS = 0.2
const JITTER = 0.2
/**
 * In a small swarm everyone may know everyone. In a large one each knows some 32, half of them by its own handout: with
 * 24 the last of 1,000 simulated machines took a tenth longer, with 48 each piece is told to half as many again.
 */
const SMALL_SWARM = 64
const LARGE_HANDOUT = 16
const ENOUGH_CONNECTIONS = 24
/** A member is gone after this many of its intervals. */
const EXPIRY_INTERVALS = 3
/** At most this share of a handout is complete peers while there are others: a crowd must not all go to the seeds. */
const COMPLETE_SHARE = 1 / 3
/** So many keep an artifact that nobody is fetching, for whoever comes days later. */
const KEEPERS = 10

interface Table {
  seeds: Members
  resting: Members
  incomplete: Members
  keepers: Set<string>
  holdings: Holdings
}

/**
 * Who is in which swarm. Names peers, nothing more: an answer is a random few, so the connections of a swarm become a
 * random graph, which stays in one piece; peers settle the pieces among themselves. Most of them are near, so that few
 * bytes travel far; some are from anywhere, because a zone whose machines know only each other gets nothing that none
 * of them has (Kraken #244). Held in memory: after a restart it fills again within one interval.
 */
export class Tracker {
  readonly #tables = new Map<string, Table>()
  readonly #handout: number
  readonly #intervalMs: number
  readonly #announcesPerSecond: number
  readonly #random: () => number
  /** All members of all swarms, by how often they announce. */
  #load = 0

  constructor(o: TrackerOptions = {}) {
    this.#handout = o.handout ?? 30
    this.#intervalMs = o.intervalMs ?? 5000
    this.#announcesPerSecond = o.announcesPerSecond ?? 2000
    this.#random = o.random ?? Math.random
  }

  /** O(handout + pieces / 8), whatever the size of the swarm. Who has everything is handed nobody. */
  announce(announce: Announce, nowMs: number): AnnounceAnswer {
    const { infoHash, machine, host, port, zone, rack, completed, resting = false } = announce
    let table = this.#tables.get(infoHash)
    if (!table) {
      table = {
        seeds: new Members(),
        resting: new Members(),
        incomplete: new Members(),
        keepers: new Set(),
        holdings: new Holdings(),
      }
      this.#tables.set(infoHash, table)
    }
    const before = load(table)
    expire(table, nowMs)
    const intervalMs = this.#interval(announce)
    const places = zone === undefined ? [] : [zone, ...(rack === undefined ? [] : [`${zone}/${rack}`])]
    const member = { machine, host, port, places, expiresMs: nowMs + intervalMs * EXPIRY_INTERVALS }
    const mine = completed ? (resting ? table.resting : table.seeds) : table.incomplete
    for (const members of [table.seeds, table.resting, table.incomplete]) if (members !== mine) members.delete(machine)
    mine.set(member)
    if (completed) table.holdings.delete(machine)
    else table.keepers.delete(machine)
    if (!completed && announce.pieces) table.holdings.set(machine, announce.pieces, announce.pieceCount ?? 0)
    this.#load += load(table) - before
    const enough = completed || (announce.connected ?? 0) >= ENOUGH_CONNECTIONS
    const peers = enough ? [] : this.#draw(table, member)
    return {
      peers: peers.map((peer) => ({ host: peer.host, port: peer.port })),
      intervalMs,
      seed: completed && isNeeded(table, machine),
    }
  }

  #interval(announce: Announce): number {
    const leastMs = (this.#load / this.#announcesPerSecond) * 1000
    const baseMs = Math.max(leastMs, this.#intervalMs) * intervals(announce)
    return Math.round(baseMs * (1 - JITTER + 2 * JITTER * this.#random()))
  }

  #draw(table: Table, member: Member): Member[] {
    const isLarge = table.seeds.size + table.incomplete.size > SMALL_SWARM
    const handout = isLarge ? Math.min(LARGE_HANDOUT, this.#handout) : this.#handout
    const seeds = table.seeds.draw(handout, member, this.#random)
    const others = table.incomplete.draw(handout, member, this.#random)
    const fewSeeds = Math.max(Math.ceil(handout * COMPLETE_SHARE), handout - others.length)
    return [...seeds.slice(0, fewSeeds), ...others].slice(0, handout)
  }

  /** A machine left a swarm. */
  forget(infoHash: string, machine: string): void {
    const table = this.#tables.get(infoHash)
    if (!table) return
    const before = load(table)
    for (const members of [table.seeds, table.resting, table.incomplete]) members.delete(machine)
    table.keepers.delete(machine)
    table.holdings.delete(machine)
    this.#load += load(table) - before
  }

  /** Drops who was not heard of; announces do it for their own swarm, this for those that fell silent. */
  expire(nowMs: number): void {
    for (const [infoHash, table] of this.#tables) {
      const before = load(table)
      expire(table, nowMs)
      this.#load += load(table) - before
      if (table.seeds.size + table.resting.size + table.incomplete.size === 0) this.#tables.delete(infoHash)
    }
  }

  /** When to announce again for who has just been lent something to read. */
  get readerMs(): number {
    return this.#intervalMs * READER_INTERVALS
  }

  /** How many swarms are known. */
  get swarms(): number {
    return this.#tables.size
  }

  counts(infoHash: string): SwarmCounts {
    const table = this.#tables.get(infoHash)
    if (!table) return { complete: 0, incomplete: 0, keepers: 0 }
    const { seeds, resting, incomplete, keepers } = table
    return { complete: seeds.size + resting.size, incomplete: incomplete.size, keepers: keepers.size }
  }

  /** How far the artifact has come; undefined when nobody is known. */
  reach(infoHash: string, pieceCount: number): Reach | undefined {
    const table = this.#tables.get(infoHash)
    if (!table) return undefined
    const { seeds, resting, incomplete, holdings } = table
    return reachOf({ complete: seeds.size + resting.size, fetching: incomplete.size, holdings, pieceCount })
  }

  /** How many machines can give a piece, as far as they said. */
  availabilityOf(infoHash: string): (pieceIndex: number) => number {
    const table = this.#tables.get(infoHash)
    if (!table) return () => 0
    const { seeds, holdings } = table
    return (pieceIndex) => seeds.size + holdings.availability(pieceIndex)
  }

  /** Whether a machine that fetches said it has this piece. */
  has(infoHash: string, machine: string, pieceIndex: number): boolean {
    return this.#tables.get(infoHash)?.holdings.has(machine, pieceIndex) ?? false
  }
}

function intervals({ completed, resting, connected, reads }: Announce): number {
  if (reads) return READER_INTERVALS
  if (completed) return resting ? REST_INTERVALS : SEED_INTERVALS
  return (connected ?? LONELY_CONNECTIONS) < LONELY_CONNECTIONS ? LONELY_INTERVALS : 1
}

function load({ seeds, resting, incomplete }: Table): number {
  return incomplete.size + seeds.size / SEED_INTERVALS + resting.size / REST_INTERVALS
}

function expire(table: Table, nowMs: number): void {
  const gone = (machine: string) => {
    table.keepers.delete(machine)
    table.holdings.delete(machine)
  }
  for (const members of [table.seeds, table.resting, table.incomplete]) members.expire(nowMs, gone)
}

/** While someone fetches, all who have it give it; after that a few. */
function isNeeded({ keepers, incomplete }: Table, machine: string): boolean {
  if (keepers.size < KEEPERS) keepers.add(machine)
  return keepers.has(machine) || incomplete.size > 0
}
