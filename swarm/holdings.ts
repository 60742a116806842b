/** Which pieces the machines of a swarm said they have: BEP 3 bitfields, by machine. */
export class Holdings {
  readonly #bytes = new Map<string, Uint8Array>()
  #availability = new Uint32Array(0)

  /** Takes the place of what it said before; what it says of pieces that do not exist is not kept. O(pieces / 8). */
  set(machine: string, said: Uint8Array, pieceCount: number): void {
    // copied: said may be the front of something larger
    const bitfield = Uint8Array.from(said.subarray(0, Math.ceil(pieceCount / 8)))
    if (this.#availability.length < bitfield.length * 8) {
      const grown = new Uint32Array(bitfield.length * 8)
      grown.set(this.#availability)
      this.#availability = grown
    }
    this.#change(this.#bytes.get(machine), bitfield)
    this.#bytes.set(machine, bitfield)
  }

  delete(machine: string): void {
    const bitfield = this.#bytes.get(machine)
    if (!bitfield) return
    this.#change(bitfield, undefined)
    this.#bytes.delete(machine)
  }

  has(machine: string, pieceIndex: number): boolean {
    return bit(this.#bytes.get(machine), pieceIndex)
  }

  /** How many said they have it. */
  availability(pieceIndex: number): number {
    return this.#availability[pieceIndex] ?? 0
  }

  /** How many pieces each machine has that said so. */
  *counts(): Generator<number> {
    for (const bytes of this.#bytes.values()) {
      let count = 0
      for (let byte of bytes) for (; byte !== 0; byte &= byte - 1) count++
      yield count
    }
  }

  #change(before: Uint8Array | undefined, after: Uint8Array | undefined): void {
    const length = Math.max(before?.length ?? 0, after?.length ?? 0)
    for (let at = 0; at < length; at++) {
      const changed = (before?.[at] ?? 0) ^ (after?.[at] ?? 0)
      if (changed === 0) continue
      for (let index = at * 8; index < at * 8 + 8; index++) {
        if ((changed & (0x80 >> (index & 7))) === 0) continue
        this.#availability[index] = this.availability(index) + (bit(after, index) ? 1 : -1)
      }
    }
  }
}

function bit(bytes: Uint8Array | undefined, index: number): boolean {
  return ((bytes?.[index >> 3] ?? 0) & (0x80 >> (index & 7))) !== 0
}
