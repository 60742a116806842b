/**
 * Memory for pieces. Shared, so that the hash worker reads it without a copy; counted, so that a buffer returns to
 * the pool only when the socket has sent its last slice; pooled, because touching fresh memory costs more than
 * receiving into it; growable, though nothing grows it, because V8 puts growable memory at the start of a page, as
 * direct writes want it.
 */
export interface PieceBuffer {
  readonly bytes: Uint8Array
  uses: number
}

export class PieceBuffers {
  readonly #free = new Map<number, PieceBuffer[]>()
  #freeBytes = 0
  readonly #maxFreeBytes: number

  constructor(maxFreeBytes: number) {
    this.#maxFreeBytes = maxFreeBytes
  }

  /** A buffer of at least `sizeBytes`, held once. Its content is whatever was there. */
  acquire(sizeBytes: number): PieceBuffer {
    const capacity = 2 ** Math.ceil(Math.log2(sizeBytes))
    const buffer = this.#free.get(capacity)?.pop()
    if (!buffer) {
      const memory = new SharedArrayBuffer(capacity, { maxByteLength: capacity })
      return { bytes: new Uint8Array(memory, 0, capacity), uses: 1 }
    }
    this.#freeBytes -= capacity
    buffer.uses = 1
    return buffer
  }

  hold(buffer: PieceBuffer): PieceBuffer {
    buffer.uses++
    return buffer
  }

  release(buffer: PieceBuffer): void {
    if (--buffer.uses > 0) return
    const capacity = buffer.bytes.length
    if (this.#freeBytes + capacity > this.#maxFreeBytes) return
    this.#freeBytes += capacity
    const list = this.#free.get(capacity)
    if (list) list.push(buffer)
    else this.#free.set(capacity, [buffer])
  }
}

/** Pieces that were received lately, and parts read from disk, for uploading: a peer asks for a piece in many blocks. */
export class PieceCache {
  readonly #buffers: PieceBuffers
  readonly #maxBytes: number
  readonly #pieces = new Map<string, PieceBuffer>()
  readonly #loading = new Map<string, Promise<PieceBuffer>>()
  #bytes = 0

  constructor(buffers: PieceBuffers, maxBytes: number) {
    this.#buffers = buffers
    this.#maxBytes = maxBytes
  }

  has(key: string): boolean {
    return this.#pieces.has(key)
  }

  /** The piece, held for the caller; loaded once however many ask. */
  async get(key: string, load: () => Promise<PieceBuffer>): Promise<PieceBuffer> {
    const cached = this.#pieces.get(key)
    if (cached) {
      this.#pieces.delete(key)
      this.#pieces.set(key, cached)
      return this.#buffers.hold(cached)
    }
    let loading = this.#loading.get(key)
    if (!loading) {
      loading = load()
        .then((buffer) => {
          this.put(key, buffer)
          this.#buffers.release(buffer)
          return buffer
        })
        .finally(() => this.#loading.delete(key))
      this.#loading.set(key, loading)
    }
    await loading
    // it may have been evicted by the time this runs: then it is loaded again
    return this.get(key, load)
  }

  /** Keeps a hold of its own. */
  put(key: string, buffer: PieceBuffer): void {
    if (this.#pieces.has(key)) return
    this.#pieces.set(key, this.#buffers.hold(buffer))
    this.#bytes += buffer.bytes.length
    for (const [oldest, evicted] of this.#pieces) {
      if (this.#bytes <= this.#maxBytes || oldest === key) break
      this.#drop(oldest, evicted)
    }
  }

  /** Drops everything whose key begins with `prefix`. */
  forget(prefix: string): void {
    for (const [key, buffer] of this.#pieces) if (key.startsWith(prefix)) this.#drop(key, buffer)
  }

  #drop(key: string, buffer: PieceBuffer): void {
    this.#pieces.delete(key)
    this.#bytes -= buffer.bytes.length
    this.#buffers.release(buffer)
  }
}
