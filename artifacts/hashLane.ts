/** A worker thread of hashOutput: reads the files in order and runs some of the hashes over their bytes. */
import { createHash, type Hash } from 'node:crypto'
import { closeSync, constants, openSync, readSync } from 'node:fs'
import { parentPort, workerData } from 'node:worker_threads'

export interface HashPlan {
  algorithm: 'sha1' | 'sha256'
  /** A digest for each so many bytes of the blob; absent: one of it all. */
  everyBytes?: number
}

export interface LaneInput {
  files: { absolute: string; sizeBytes: number }[]
  plans: HashPlan[]
}

/** `progress` now and then, one of the others at the end. `digests`: per plan, all its digests one after the other. */
export type LaneMessage =
  | { type: 'progress'; bytes: number }
  | { type: 'done'; digests: Uint8Array[] }
  | { type: 'changed'; absolute: string }

const READ_BYTES = 1 << 20
const PROGRESS_BYTES = 64 << 20

/** Cuts the stream of bytes at multiples of `everyBytes`, with one digest for each piece. */
class Cutter {
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

function run({ files, plans }: LaneInput, post: (message: LaneMessage) => void): void {
  const cutters = plans.map((plan) => new Cutter(plan))
  const buffer = Buffer.allocUnsafeSlow(READ_BYTES)
  let total = 0
  let reported = 0
  for (const { absolute, sizeBytes } of files) {
    const fd = openSync(absolute, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK)
    try {
      let left = sizeBytes
      for (;;) {
        const count = readSync(fd, buffer, 0, READ_BYTES, null)
        if (count === 0) break
        left -= count
        if (left < 0) break
        for (const cutter of cutters) cutter.update(buffer.subarray(0, count))
        total += count
        if (total - reported >= PROGRESS_BYTES) {
          reported = total
          post({ type: 'progress', bytes: total })
        }
      }
      if (left !== 0) {
        post({ type: 'changed', absolute })
        return
      }
    } finally {
      closeSync(fd)
    }
  }
  post({ type: 'done', digests: cutters.map((cutter) => cutter.finish()) })
}

const port = parentPort
if (port) run(workerData as LaneInput, (message) => port.postMessage(message))
