import { Bitfield } from './bitfield.ts'

/**
 * Which piece to begin next. Rarest first, ties broken at random; the first few at random outright, so that a new
 * peer soon has something that others want and a crowd that starts together does not ask for the same thing.
 * A piece is missing, taken (someone fetches or checks it) or had.
 *
 * One pick is a scan of all pieces: 2,560 for 10 GiB, once per 4 MiB received.
 */
export class PiecePicker {
  readonly had: Bitfield
  readonly #taken: Bitfield
  /** How many connected peers have each piece. */
  readonly #availability: Uint32Array
  readonly #random: () => number

  constructor(pieceCount: number, random: () => number) {
    this.had = new Bitfield(pieceCount)
    this.#taken = new Bitfield(pieceCount)
    this.#availability = new Uint32Array(pieceCount)
    this.#random = random
  }

  /** No piece is left that nobody fetches yet: the endgame. */
  get exhausted(): boolean {
    return this.had.count + this.#taken.count === this.had.size
  }

  availability(index: number): number {
    return this.#availability[index] ?? 0
  }

  peerHas(index: number): void {
    this.#availability[index] = this.availability(index) + 1
  }

  peerLacks(index: number): void {
    this.#availability[index] = Math.max(0, this.availability(index) - 1)
  }

  peerLeft(pieces: Bitfield): void {
    for (let i = 0; i < pieces.size; i++) if (pieces.has(i)) this.peerLacks(i)
  }

  /** Takes a missing piece for which `offered` holds; undefined if there is none. */
  take(offered: (index: number) => boolean, randomFirst = 4): number | undefined {
    const size = this.had.size
    const start = Math.floor(this.#random() * size)
    const anyWill = this.had.count + this.#taken.count < randomFirst
    let best: number | undefined
    for (let i = 0; i < size; i++) {
      const index = (start + i) % size
      if (this.had.has(index) || this.#taken.has(index)) continue
      if (best !== undefined && this.availability(index) >= this.availability(best)) continue
      if (!offered(index)) continue
      best = index
      if (anyWill || this.availability(index) === 0) break
    }
    if (best !== undefined) this.#taken.add(best)
    return best
  }

  /** The fetch of a taken piece came to nothing. */
  putBack(index: number): void {
    this.#taken.remove(index)
  }

  /** A piece is on disk and right. */
  gained(index: number): void {
    this.#taken.remove(index)
    this.had.add(index)
  }

  /** A piece turned out to be damaged on disk. */
  lost(index: number): void {
    this.had.remove(index)
  }

  missing(): number[] {
    const indexes: number[] = []
    for (let i = 0; i < this.had.size; i++) if (!this.had.has(i)) indexes.push(i)
    return indexes
  }
}
