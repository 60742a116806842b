import { Bitfield } from './bitfield.ts'

const NOWHERE = -1
const RANDOM_FIRST = 4

/**
 * Which piece to begin next. Rarest first, ties broken at random; the first few at random outright, so that a new
 * peer soon has something that others want and a crowd that starts together does not ask for the same thing.
 * A piece is missing, taken (someone fetches or checks it) or had.
 *
 * Missing pieces lie in one array in groups of rising availability, so that a piece changes its group by one swap, and
 * the rarest is found at its head.
 */
export class PiecePicker {
  readonly had: Bitfield
  readonly #taken: Bitfield
  /** How many connected peers have each piece. */
  readonly #availability: Uint32Array
  /** How many of them are near. */
  readonly #near: Uint16Array
  readonly #order: Uint32Array
  /** Where each piece is in `#order`, if it is missing. */
  readonly #at: Int32Array
  /** Where the group of each availability ends. */
  readonly #ends: number[]
  readonly #random: () => number
  /** Grows when a piece is to be had again, or of others, that was not: who had nothing to offer may have now. */
  version = 0

  constructor(pieceCount: number, random: () => number) {
    this.had = new Bitfield(pieceCount)
    this.#taken = new Bitfield(pieceCount)
    this.#availability = new Uint32Array(pieceCount)
    this.#near = new Uint16Array(pieceCount)
    this.#order = Uint32Array.from({ length: pieceCount }, (_, index) => index)
    this.#at = Int32Array.from({ length: pieceCount }, (_, index) => index)
    this.#ends = [pieceCount]
    this.#random = random
  }

  /** No piece is left that nobody fetches yet: the endgame. */
  get exhausted(): boolean {
    return this.#total === 0
  }

  availability(index: number): number {
    return this.#availability[index] ?? 0
  }

  /** Some peer that is near has it. */
  isNear(index: number): boolean {
    return (this.#near[index] ?? 0) > 0
  }

  peerHas(index: number, near = true): void {
    if (near) this.#near[index] = (this.#near[index] ?? 0) + 1
    const availability = this.availability(index)
    this.#availability[index] = availability + 1
    if (this.#isOut(index)) return
    // to the end of its group, which then ends before it
    if (availability + 1 === this.#ends.length) this.#ends.push(this.#total)
    const end = this.#end(availability) - 1
    this.#swap(this.#position(index), end)
    this.#ends[availability] = end
  }

  peerLacks(index: number, near = true): void {
    const availability = this.availability(index)
    if (availability === 0) return
    if (near) {
      const left = (this.#near[index] ?? 1) - 1
      this.#near[index] = left
      if (left === 0) this.version++
    }
    this.#availability[index] = availability - 1
    if (this.#isOut(index)) return
    const begin = this.#end(availability - 1)
    this.#swap(this.#position(index), begin)
    this.#ends[availability - 1] = begin + 1
  }

  peerLeft(pieces: Bitfield, near = true): void {
    for (let i = 0; i < pieces.size; i++) if (pieces.has(i)) this.peerLacks(i, near)
  }

  /**
   * Takes a missing piece that so many peers have at least and for which `offered` holds; undefined if there is none.
   * What peers offer is not among what nobody has, which in a young swarm is nearly everything.
   */
  take(offered: (index: number) => boolean, o: { atLeast?: number; randomFirst?: number } = {}): number | undefined {
    const { atLeast = 0, randomFirst = RANDOM_FIRST } = o
    const anyWill = this.had.count + this.#taken.count < randomFirst
    let index = anyWill ? this.#find(this.#end(atLeast - 1), this.#total, offered) : undefined
    for (let availability = atLeast; index === undefined && availability < this.#ends.length; availability++)
      index = this.#find(this.#end(availability - 1), this.#end(availability), offered)
    if (index !== undefined) this.takeThis(index)
    return index
  }

  /** Takes the rarest of these that is missing, and for which `offered` holds. */
  takeOneOf(indexes: readonly number[], offered: (index: number) => boolean): number | undefined {
    let rarest: number | undefined
    for (const index of indexes) {
      if (this.#isOut(index) || !offered(index)) continue
      if (rarest === undefined || this.availability(index) < this.availability(rarest)) rarest = index
    }
    if (rarest !== undefined) this.takeThis(rarest)
    return rarest
  }

  /** Takes this piece. @returns false when it is not missing, or taken already. */
  takeThis(index: number): boolean {
    if (this.#isOut(index)) return false
    this.#remove(index)
    return this.#taken.add(index)
  }

  /** The fetch of a taken piece came to nothing. */
  putBack(index: number): void {
    if (this.#taken.remove(index)) this.#insert(index)
  }

  /** A piece is on disk and right. */
  gained(index: number): void {
    if (!this.#isOut(index)) this.#remove(index)
    this.#taken.remove(index)
    this.had.add(index)
  }

  /** A piece turned out to be damaged on disk. */
  lost(index: number): void {
    if (this.had.remove(index)) this.#insert(index)
  }

  missing(): number[] {
    const indexes: number[] = []
    for (let i = 0; i < this.had.size; i++) if (!this.had.has(i)) indexes.push(i)
    return indexes
  }

  get #total(): number {
    return this.#ends.at(-1) ?? 0
  }

  #end(availability: number): number {
    return availability < 0 ? 0 : (this.#ends[availability] ?? this.#total)
  }

  #position(index: number): number {
    return this.#at[index] ?? NOWHERE
  }

  #isOut(index: number): boolean {
    return this.#position(index) === NOWHERE
  }

  /** The first that is offered, from somewhere in the range on. */
  #find(begin: number, end: number, offered: (index: number) => boolean): number | undefined {
    const size = end - begin
    const start = Math.floor(this.#random() * size)
    for (let i = 0; i < size; i++) {
      const index = this.#order[begin + ((start + i) % size)] ?? 0
      if (offered(index)) return index
    }
    return undefined
  }

  #swap(a: number, b: number): void {
    const atA = this.#order[a] ?? 0
    const atB = this.#order[b] ?? 0
    this.#order[a] = atB
    this.#order[b] = atA
    this.#at[atB] = a
    this.#at[atA] = b
  }

  /** Takes it from its group; each group above moves down by one. */
  #remove(index: number): void {
    let hole = this.#position(index)
    for (let availability = this.availability(index); availability < this.#ends.length; availability++) {
      const last = this.#end(availability) - 1
      this.#swap(hole, last)
      this.#ends[availability] = last
      hole = last
    }
    this.#at[index] = NOWHERE
  }

  #insert(index: number): void {
    const availability = this.availability(index)
    while (this.#ends.length <= availability) this.#ends.push(this.#total)
    let hole = this.#total
    this.#order[hole] = index
    this.#at[index] = hole
    for (let above = this.#ends.length - 1; above > availability; above--) {
      const begin = this.#end(above - 1)
      this.#swap(hole, begin)
      this.#ends[above] = this.#end(above) + 1
      hole = begin
    }
    this.#ends[availability] = this.#end(availability) + 1
    this.version++
  }
}
