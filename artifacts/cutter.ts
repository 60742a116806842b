import { createHash, type Hash } from 'node:crypto'

/** One digest, or many, over the bytes of all files. */
export interface HashPlan {
  algorithm: 'sha1' | 'sha256'
  /** A digest for each so many bytes of the blob; absent: one of it all. */
  everyBytes?: number
}

/** Cuts the stream of bytes at multiples of `everyBytes`, with one digest for each piece. */
export class Cutter {
  readonly #plan: HashPlan
  readonly #digests: Uint8Array[] = []
  #hash: Hash
  #inPiece = 0

  constructor(plan: HashPlan) {
    this.#plan = plan
    this.#hash = createHash(plan.algorithm)
  }

  update(bytes: Uint8Array): void {
    const every = this.#plan.everyBytes ?? Number.POSITIVE_INFINITY
    for (let at = 0; at < bytes.length; ) {
      const end = Math.min(bytes.length, at + every - this.#inPiece)
      this.#hash.update(bytes.subarray(at, end))
      this.#inPiece += end - at
      at = end
      if (this.#inPiece === every) this.#cut()
    }
  }

  finish(): Uint8Array {
    if (this.#inPiece > 0) this.#cut()
    return Buffer.concat(this.#digests)
  }

  #cut(): void {
    this.#digests.push(this.#hash.digest())
    this.#hash = createHash(this.#plan.algorithm)
    this.#inPiece = 0
  }
}
