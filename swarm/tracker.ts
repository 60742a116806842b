import type { Address } from './addresses.ts'

/** What a machine says of itself in one swarm. */
export interface Announce {
  infoHash: string
  peerId: string
  /** One entry per machine: a restarted agent replaces itself. */
  machine: string
  host: string
  port: number
  /** Pieces it has. */
  have: number
  completed: boolean
}

export interface AnnounceAnswer {
  peers: Address[]
  /** When to announce again; jittered. */
  intervalMs: number
}

interface TrackerOptions {
  /** Peers in an answer. */
  handout?: number
  intervalMs?: number
  /** A larger swarm announces less often, so that all announces of it stay below this. */
  announcesPerSecond?: number
  random?: () => number
}

interface Member extends Address {
  machine: string
  expiresMs: number
}

/** Those who have everything only need to stay known. */
const COMPLETE_INTERVALS = 6
const JITTER = 0.2
/** A member is gone after this many of its intervals. */
const EXPIRY_INTERVALS = 3
/** At most this share of a handout is complete peers while there are others: a crowd must not all go to the seeds. */
const COMPLETE_SHARE = 1 / 3

/**
 * Members of one kind: drawn at random in O(1), found by machine, and in the order of their last announce, so that
 * the expired are at the front.
 */
class Members {
  readonly #byMachine = new Map<string, { member: Member; at: number }>()
  readonly #list: Member[] = []

  get size(): number {
    return this.#list.length
  }

  set(member: Member): void {
    this.delete(member.machine)
    this.#byMachine.set(member.machine, { member, at: this.#list.length })
    this.#list.push(member)
  }

  delete(machine: string): void {
    const entry = this.#byMachine.get(machine)
    if (!entry) return
    this.#byMachine.delete(machine)
    const last = this.#list.pop()
    if (!last || last === entry.member) return
    this.#list[entry.at] = last
    const moved = this.#byMachine.get(last.machine)
    if (moved) moved.at = entry.at
  }

  expire(nowMs: number): void {
    for (const [machine, { member }] of this.#byMachine) {
      if (member.expiresMs > nowMs) break
      this.delete(machine)
    }
  }

  /** Up to `count` different members in a random order, without `machine`. O(count). */
  draw(count: number, machine: string, random: () => number): Member[] {
    const size = this.#list.length
    const drawn: Member[] = []
    // a partial Fisher-Yates shuffle over indexes, with only the moved ones written down
    const moved = new Map<number, number>()
    for (let i = 0; i < size && drawn.length < count; i++) {
      const j = i + Math.floor(random() * (size - i))
      const member = this.#list[moved.get(j) ?? j]
      moved.set(j, moved.get(i) ?? i)
      if (member && member.machine !== machine) drawn.push(member)
    }
    return drawn
  }
}

interface Table {
  complete: Members
  incomplete: Members
}

/**
 * Who is in which swarm. Names peers, nothing more: an answer is a random few, so the connections of a swarm become a
 * random graph, which stays in one piece; peers settle the pieces among themselves. Held in memory: after a restart it
 * fills again within one interval.
 */
export class Tracker {
  readonly #tables = new Map<string, Table>()
  readonly #handout: number
  readonly #intervalMs: number
  readonly #announcesPerSecond: number
  readonly #random: () => number

  constructor(o: TrackerOptions = {}) {
    this.#handout = o.handout ?? 30
    this.#intervalMs = o.intervalMs ?? 5000
    this.#announcesPerSecond = o.announcesPerSecond ?? 2000
    this.#random = o.random ?? Math.random
  }

  /** O(handout), whatever the size of the swarm. Who has everything is handed nobody. */
  announce(announce: Announce, nowMs: number): AnnounceAnswer {
    const { infoHash, machine, host, port, completed } = announce
    let table = this.#tables.get(infoHash)
    if (!table) {
      table = { complete: new Members(), incomplete: new Members() }
      this.#tables.set(infoHash, table)
    }
    table.complete.expire(nowMs)
    table.incomplete.expire(nowMs)
    const intervalMs = this.#interval(table, completed)
    const member = { machine, host, port, expiresMs: nowMs + intervalMs * EXPIRY_INTERVALS }
    const [mine, other] = completed ? [table.complete, table.incomplete] : [table.incomplete, table.complete]
    mine.set(member)
    other.delete(machine)
    const peers = completed ? [] : this.#draw(table, machine)
    return { peers: peers.map((peer) => ({ host: peer.host, port: peer.port })), intervalMs }
  }

  #interval(table: Table, completed: boolean): number {
    const size = table.complete.size + table.incomplete.size
    const leastMs = (size / this.#announcesPerSecond) * 1000
    const baseMs = Math.max(leastMs, this.#intervalMs * (completed ? COMPLETE_INTERVALS : 1))
    return Math.round(baseMs * (1 - JITTER + 2 * JITTER * this.#random()))
  }

  #draw(table: Table, machine: string): Member[] {
    const seeds = table.complete.draw(this.#handout, machine, this.#random)
    const others = table.incomplete.draw(this.#handout, machine, this.#random)
    const fewSeeds = Math.max(Math.ceil(this.#handout * COMPLETE_SHARE), this.#handout - others.length)
    return [...seeds.slice(0, fewSeeds), ...others].slice(0, this.#handout)
  }

  /** A machine left a swarm. */
  forget(infoHash: string, machine: string): void {
    const table = this.#tables.get(infoHash)
    table?.complete.delete(machine)
    table?.incomplete.delete(machine)
  }

  /** Drops who was not heard of; announces do it for their own swarm, this for those that fell silent. */
  expire(nowMs: number): void {
    for (const [infoHash, { complete, incomplete }] of this.#tables) {
      complete.expire(nowMs)
      incomplete.expire(nowMs)
      if (complete.size + incomplete.size === 0) this.#tables.delete(infoHash)
    }
  }

  /** How many swarms are known. */
  get swarms(): number {
    return this.#tables.size
  }

  counts(infoHash: string): { complete: number; incomplete: number } {
    const table = this.#tables.get(infoHash)
    return { complete: table?.complete.size ?? 0, incomplete: table?.incomplete.size ?? 0 }
  }
}
