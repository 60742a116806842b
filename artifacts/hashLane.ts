/** A worker thread of hashOutput: reads the files in order and runs some of the hashes over their bytes. */
import { closeSync, constants, openSync, readSync } from 'node:fs'
import { parentPort, workerData } from 'node:worker_threads'
import { Chunker } from './chunker.ts'
import { Cutter, type HashPlan } from './cutter.ts'

/** Digests of the blob, or the chunks of its files. */
export type LanePlan = HashPlan | { chunkAverageBytes: number }

export interface LaneInput {
  files: { absolute: string; sizeBytes: number }[]
  plans: LanePlan[]
}

/** `progress` now and then, one of the others at the end. `results`: per plan, its digests or chunks, one after the other. */
export type LaneMessage =
  | { type: 'progress'; bytes: number }
  | { type: 'done'; results: Uint8Array[] }
  | { type: 'changed'; absolute: string }

const READ_BYTES = 1 << 20
const PROGRESS_BYTES = 64 << 20

function run({ files, plans }: LaneInput, post: (message: LaneMessage) => void): void {
  const cutters = plans.map((plan) => ('algorithm' in plan ? new Cutter(plan) : new Chunker(plan.chunkAverageBytes)))
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
      for (const cutter of cutters) if (cutter instanceof Chunker) cutter.endFile()
    } finally {
      closeSync(fd)
    }
  }
  post({ type: 'done', results: cutters.map((cutter) => cutter.finish()) })
}

const port = parentPort
if (port) run(workerData as LaneInput, (message) => port.postMessage(message))
