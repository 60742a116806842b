/** A set of piece indexes in BEP 3's layout: the high bit of the first byte is piece 0. */
export class Bitfield {
  readonly size: number
  readonly bytes: Uint8Array
  #count = 0

  constructor(size: number) {
    this.size = size
    this.bytes = new Uint8Array(Math.ceil(size / 8))
  }

  /** @returns undefined when the length is wrong or a spare bit is set, which BEP 3 forbids. */
  static parse(size: number, bytes: Uint8Array): Bitfield | undefined {
    if (bytes.length !== Math.ceil(size / 8)) return undefined
    const field = new Bitfield(size)
    for (let i = 0; i < bytes.length * 8; i++) {
      if (((bytes[i >> 3] ?? 0) & (0x80 >> (i & 7))) === 0) continue
      if (i >= size) return undefined
      field.add(i)
    }
    return field
  }

  get count(): number {
    return this.#count
  }

  get full(): boolean {
    return this.#count === this.size
  }

  has(index: number): boolean {
    return ((this.bytes[index >> 3] ?? 0) & (0x80 >> (index & 7))) !== 0
  }

  /** @returns whether it was new. */
  add(index: number): boolean {
    if (index >= this.size || this.has(index)) return false
    this.bytes[index >> 3] = (this.bytes[index >> 3] ?? 0) | (0x80 >> (index & 7))
    this.#count++
    return true
  }

  /** @returns whether it was there. */
  remove(index: number): boolean {
    if (!this.has(index)) return false
    this.bytes[index >> 3] = (this.bytes[index >> 3] ?? 0) & ~(0x80 >> (index & 7))
    this.#count--
    return true
  }

  addAll(): void {
    for (let i = 0; i < this.size; i++) this.add(i)
  }
}
