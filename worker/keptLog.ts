import { Buffer } from 'node:buffer'
import { keptLogBytes } from '../api/workerApi.ts'

/** A part of what was printed. What lies between it and the one before was left out. */
export interface LogChunk {
  /** In bytes of all that was printed. */
  offset: number
  text: string
}

interface Limits {
  headBytes: number
  tailBytes: number
  chunkBytes: number
}

const defaults: Limits = { headBytes: keptLogBytes.head, tailBytes: keptLogBytes.tail, chunkBytes: 256 << 10 }
/** Kept to be shown when the job fails. */
const lastBytes = 4096

/** Whole characters, of chunkBytes at most. */
interface Block {
  offset: number
  bytes: Buffer
  used: number
}

/** Holds what was printed until it is taken: all of the head, and of what comes after it the end, in bounded memory. */
export class KeptLog {
  readonly #limits: Limits
  readonly #decoder = new TextDecoder()
  #blocks: Block[] = []
  #printedBytes = 0
  #takenBytes = 0
  #last = Buffer.alloc(0)

  constructor(limits: Partial<Limits> = {}) {
    this.#limits = { ...defaults, ...limits }
  }

  /** How much was printed. */
  get printedBytes(): number {
    return this.#printedBytes
  }

  add(bytes: Buffer): void {
    this.#push(this.#decoder.decode(bytes, { stream: true }))
  }

  /** No more is added. */
  end(): void {
    this.#push(this.#decoder.decode())
  }

  #push(text: string): void {
    const bytes = Buffer.from(text)
    this.#last = Buffer.concat([this.#last, bytes.subarray(-lastBytes)]).subarray(-lastBytes)
    for (let from = 0; from < bytes.length; ) {
      const block = this.#room()
      const to = characterStart(bytes, from + block.bytes.length - block.used)
      bytes.copy(block.bytes, block.used, from, to)
      block.used += to - from
      this.#printedBytes += to - from
      from = to
    }
  }

  /** A block that a whole character fits in. */
  #room(): Block {
    const last = this.#blocks.at(-1)
    if (last && last.bytes.length - last.used >= 4) return last
    const { headBytes, tailBytes, chunkBytes } = this.#limits
    const oldest = this.#blocks.findIndex(({ offset }) => offset >= headBytes)
    const { offset = 0, used = 0 } = this.#blocks[oldest] ?? {}
    if (oldest >= 0 && this.#printedBytes - offset - used >= tailBytes) this.#blocks.splice(oldest, 1)
    const block = { offset: this.#printedBytes, bytes: Buffer.allocUnsafe(chunkBytes), used: 0 }
    this.#blocks.push(block)
    return block
  }

  /** The end of what was printed, not more than some KB of it. */
  lastText(maxBytes: number): string {
    return this.#last.subarray(-maxBytes).toString()
  }

  /** The next part; undefined when there is none. After a gap it begins with a line, where one begins soon. */
  next(): LogChunk | undefined {
    const block = this.#blocks.shift()
    if (!block) return undefined
    const { offset, used } = block
    const bytes = block.bytes.subarray(0, used)
    const cut = offset > this.#takenBytes ? bytes.subarray(0, 4096).indexOf('\n') + 1 : 0
    this.#takenBytes = offset + used
    return { offset: offset + cut, text: bytes.toString('utf8', cut) }
  }
}

/** The last place at or before `at` where a character begins. */
function characterStart(bytes: Buffer, at: number): number {
  let start = Math.min(at, bytes.length)
  while (start < bytes.length && ((bytes[start] ?? 0) & 0xc0) === 0x80) start--
  return start
}
