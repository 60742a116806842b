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
  /** Of the head, not given away yet. */
  #head: Buffer[] = []
  #headBytes = 0
  #tail: Buffer[] = []
  #tailBytes = 0
  #leftOut = 0
  #ended = false
  #offset = 0

  constructor(limits: Partial<Limits> = {}) {
    this.#limits = { ...defaults, ...limits }
  }

  add(bytes: Buffer): void {
    const room = Math.max(0, this.#limits.headBytes - this.#headBytes)
    if (room > 0) this.#head.push(Buffer.from(bytes.subarray(0, room)))
    this.#headBytes += Math.min(room, bytes.length)
    this.#addTail(bytes.subarray(room))
  }

  /** Whole chunks are dropped, so the tail is longer than its limit by less than one chunk until it is used. */
  #addTail(bytes: Buffer): void {
    if (bytes.length === 0) return
    this.#tail.push(Buffer.from(bytes))
    this.#tailBytes += bytes.length
    for (let [first] = this.#tail; first; [first] = this.#tail) {
      if (this.#tailBytes - first.length < this.#limits.tailBytes) break
      this.#tail.shift()
      this.#tailBytes -= first.length
      this.#leftOut += first.length
    }
  }

  /** No more is added; the tail comes after the head. */
  end(): void {
    if (this.#ended) return
    this.#ended = true
    let tail = Buffer.concat(this.#tail)
    const tooMuch = tail.length - this.#limits.tailBytes
    if (tooMuch > 0 || this.#leftOut > 0) {
      const line = tail.indexOf('\n', Math.max(0, tooMuch)) + 1
      const cut = line > 0 && line < Math.max(0, tooMuch) + 4096 ? line : Math.max(0, tooMuch)
      this.#leftOut += cut
      tail = tail.subarray(cut)
    }
    if (this.#leftOut > 0) this.#head.push(Buffer.from(`\n… ${this.#leftOut} bytes left out …\n`))
    this.#head.push(tail)
    this.#tail = []
    this.#tailBytes = 0
  }

  /** The next part, at most chunkBytes of it; undefined when there is none for now. */
  next(): LogChunk | undefined {
    const parts: Buffer[] = []
    for (let rest = this.#limits.chunkBytes; rest > 0; ) {
      const [first] = this.#head
      if (!first) break
      parts.push(first.subarray(0, rest))
      if (first.length <= rest) this.#head.shift()
      else this.#head[0] = first.subarray(rest)
      rest -= first.length
    }
    const last = this.#ended && this.#head.length === 0
    const text = this.#decoder.decode(Buffer.concat(parts), { stream: !last })
    if (text === '') return undefined
    const offset = this.#offset
    this.#offset += Buffer.byteLength(text)
    return { offset, text }
  }
}
