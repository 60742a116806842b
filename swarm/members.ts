/** Whom a tracker knows in one swarm. */
export interface Member {
  readonly machine: string
  host: string
  port: number
  /** From far to near: `zone`, `zone/rack`. */
  places: readonly string[]
  expiresMs: number
}

/** A set of members, drawn at random in O(1). */
class Bag {
  readonly #list: Member[] = []
  readonly #at = new Map<Member, number>()

  get size(): number {
    return this.#list.length
  }

  add(member: Member): void {
    this.#at.set(member, this.#list.length)
    this.#list.push(member)
  }

  delete(member: Member): void {
    const at = this.#at.get(member)
    if (at === undefined) return
    this.#at.delete(member)
    const last = this.#list.pop()
    if (!last || last === member) return
    this.#list[at] = last
    this.#at.set(last, at)
  }

  /** Up to `count` members not in `drawn`, added to it in a random order. O(count + drawn). */
  draw(count: number, drawn: Set<Member>, random: () => number): void {
    const size = this.#list.length
    const wanted = drawn.size + count
    // a partial Fisher-Yates shuffle over indexes, with only the moved ones written down
    const moved = new Map<number, number>()
    for (let i = 0; i < size && drawn.size < wanted; i++) {
      const j = i + Math.floor(random() * (size - i))
      const member = this.#list[moved.get(j) ?? j]
      moved.set(j, moved.get(i) ?? i)
      if (member) drawn.add(member)
    }
  }
}

/**
 * Members of one kind: found by machine, in the order of their last announce, so that the expired are at the front,
 * and drawn from everywhere or from one place.
 */
export class Members {
  readonly #byMachine = new Map<string, Member>()
  readonly #everywhere = new Bag()
  readonly #byPlace = new Map<string, Bag>()

  get size(): number {
    return this.#everywhere.size
  }

  get(machine: string): Member | undefined {
    return this.#byMachine.get(machine)
  }

  set(member: Member): void {
    this.delete(member.machine)
    this.#byMachine.set(member.machine, member)
    this.#everywhere.add(member)
    for (const place of member.places) {
      const bag = this.#byPlace.get(place) ?? new Bag()
      this.#byPlace.set(place, bag)
      bag.add(member)
    }
  }

  delete(machine: string): void {
    const member = this.#byMachine.get(machine)
    if (!member) return
    this.#byMachine.delete(machine)
    this.#everywhere.delete(member)
    for (const place of member.places) {
      const bag = this.#byPlace.get(place)
      bag?.delete(member)
      if (bag?.size === 0) this.#byPlace.delete(place)
    }
  }

  /** Drops who was not heard of in time, telling whom. */
  expire(nowMs: number, gone: (machine: string) => void): void {
    for (const [machine, { expiresMs }] of this.#byMachine) {
      if (expiresMs > nowMs) break
      this.delete(machine)
      gone(machine)
    }
  }

  /**
   * Up to `count` different members for one at `places`, never itself: a share of each place it is in, from near to
   * far, and the rest from everywhere, so that no place is cut off.
   */
  draw(count: number, from: { machine: string; places: readonly string[] }, random: () => number): Member[] {
    const self = this.#byMachine.get(from.machine)
    const drawn = new Set<Member>(self && [self])
    for (const place of from.places.toReversed())
      this.#byPlace.get(place)?.draw(Math.floor(count * NEAR_SHARE), drawn, random)
    const room = count + (self ? 1 : 0) - drawn.size
    if (room > 0) this.#everywhere.draw(room, drawn, random)
    if (self) drawn.delete(self)
    return [...drawn]
  }
}

/** Of a handout, for the own rack and again for the own zone. */
const NEAR_SHARE = 0.4
