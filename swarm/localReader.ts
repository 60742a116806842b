import type { PieceBuffer, PieceBuffers } from './buffers.ts'
import type { LocalChunks } from './localChunks.ts'
import type { PiecePicker } from './picker.ts'

const READS_AT_ONCE = 4

interface LocalReaderOptions {
  local: LocalChunks
  picker: PiecePicker
  buffers: PieceBuffers
  pieceSizeBytes(index: number): number
  verify(index: number, buffer: PieceBuffer): Promise<boolean>
  keep(index: number, buffer: PieceBuffer): Promise<void>
  failed(error: unknown): void
}

/**
 * Puts pieces together that releases on this disk have whole. They are nobody else's to fetch until read; what then is
 * missing or wrong is left to peers.
 */
export class LocalReader {
  readonly #o: LocalReaderOptions
  /** Taken, to be read; the last one next. */
  readonly #waiting: number[]
  readonly #lanes: Promise<unknown>

  constructor(o: LocalReaderOptions) {
    this.#o = o
    this.#waiting = o.local.whole().filter((index) => o.picker.takeThis(index))
    // from the first to the last, as disks like it
    this.#waiting.reverse()
    this.#lanes = Promise.all(Array.from({ length: READS_AT_ONCE }, () => this.#lane()))
  }

  async #lane(): Promise<void> {
    for (let index = this.#waiting.pop(); index !== undefined; index = this.#waiting.pop()) {
      try {
        if (!(await this.#read(index))) this.#o.picker.putBack(index)
      } catch (error) {
        this.#o.picker.putBack(index)
        this.#giveUp()
        this.#o.failed(error)
      }
    }
  }

  /** @returns whether we have it now. @throws when it could not be kept. */
  async #read(index: number): Promise<boolean> {
    const { buffers, local, verify, keep } = this.#o
    const sizeBytes = this.#o.pieceSizeBytes(index)
    const buffer = buffers.acquire(sizeBytes)
    try {
      if (!(await local.read(index, 0, buffer.bytes.subarray(0, sizeBytes)))) return false
      if (await verify(index, buffer)) {
        await keep(index, buffer)
        local.took(sizeBytes)
        return true
      }
      local.forget(index, new Error('its chunks are not what their digests say'))
      return false
    } finally {
      buffers.release(buffer)
    }
  }

  #giveUp(): void {
    for (const index of this.#waiting) this.#o.picker.putBack(index)
    this.#waiting.length = 0
  }

  async stop(): Promise<void> {
    this.#giveUp()
    await this.#lanes
  }
}
