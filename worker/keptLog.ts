import { Buffer } from 'node:buffer'

/** A part of the kept log, to be sent as it is. */
export interface LogChunk {
  /** In bytes of the kept log. */
  offset: number
  text: string
}

interface Limits {
  headBytes: number
  tailBytes: number
  chunkBytes: number
}

const defaults: Limits = { headBytes: 4 << 20, tailBytes: 1 << 20, chunkBytes: 256 << 10 }

/** Keeps the head and the tail of an output in bounded memory, and gives them away in chunks. */
export class KeptLog {
  readonly #limits: Limits
  readonly #decoder = new TextDecoder()
  /** The head, and at the end the tail too; grows by doubling. */
  #kept = Buffer.alloc(0)
  #keptBytes = 0
  #takenBytes = 0
  /** A ring: the byte at n of what came after the head is at n modulo its length. */
  #ring = Buffer.alloc(0)
  #afterHeadBytes = 0
  #ended = false
  #offset = 0

  constructor(limits: Partial<Limits> = {}) {
    this.#limits = { ...defaults, ...limits }
  }

  add(bytes: Buffer): void {
    const room = this.#limits.headBytes - this.#keptBytes
    this.#keep(bytes.subarray(0, room))
    if (bytes.length <= room) return
    const { tailBytes } = this.#limits
    if (this.#ring.length === 0) this.#ring = Buffer.alloc(tailBytes)
    this.#afterHeadBytes += bytes.length - room
    // Only the last bytes of a large chunk matter; they end at #afterHeadBytes.
    const last = bytes.subarray(Math.max(room, bytes.length - tailBytes))
    const at = (this.#afterHeadBytes - last.length) % tailBytes
    const copied = last.copy(this.#ring, at)
    last.copy(this.#ring, 0, copied)
  }

  #keep(bytes: Buffer): void {
    if (this.#keptBytes + bytes.length > this.#kept.length) {
      const grown = Buffer.alloc(Math.max(2 * this.#kept.length, this.#keptBytes + bytes.length, 64 << 10))
      this.#kept.copy(grown)
      this.#kept = grown
    }
    bytes.copy(this.#kept, this.#keptBytes)
    this.#keptBytes += bytes.length
  }

  /** The last bytes, not more than a few KB of them. */
  lastText(maxBytes: number): string {
    const all = this.#ended || this.#afterHeadBytes === 0 ? this.#kept.subarray(0, this.#keptBytes) : this.#tail()
    return all.subarray(-maxBytes).toString()
  }

  /** No more is added; the tail comes after the head. */
  end(): void {
    if (this.#ended) return
    this.#ended = true
    const tail = this.#tail()
    let leftOut = this.#afterHeadBytes - tail.length
    if (leftOut > 0) {
      // The tail begins with a line, where one begins soon.
      const cut = tail.subarray(0, 4096).indexOf('\n') + 1
      leftOut += cut
      this.#keep(Buffer.from(`\n… ${leftOut} bytes left out …\n`))
      this.#keep(tail.subarray(cut))
    } else this.#keep(tail)
    this.#ring = Buffer.alloc(0)
  }

  #tail(): Buffer {
    const at = this.#afterHeadBytes % (this.#ring.length || 1)
    return this.#afterHeadBytes <= this.#ring.length
      ? this.#ring.subarray(0, this.#afterHeadBytes)
      : Buffer.concat([this.#ring.subarray(at), this.#ring.subarray(0, at)])
  }

  /** The next part, at most chunkBytes of the output; undefined when there is none for now. */
  next(): LogChunk | undefined {
    const to = Math.min(this.#keptBytes, this.#takenBytes + this.#limits.chunkBytes)
    const bytes = this.#kept.subarray(this.#takenBytes, to)
    this.#takenBytes = to
    const text = this.#decoder.decode(bytes, { stream: !(this.#ended && to === this.#keptBytes) })
    if (text === '') return undefined
    const offset = this.#offset
    this.#offset += Buffer.byteLength(text)
    return { offset, text }
  }
}
