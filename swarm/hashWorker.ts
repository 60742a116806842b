/** Runs in a worker thread: digests of shared memory, so that the thread with the sockets never stops for it. */
import { hash } from 'node:crypto'
import { flushCompileCache } from 'node:module'
import { parentPort } from 'node:worker_threads'

/** SHA-1 for torrents of other clients, which have nothing better. */
export type Algorithm = 'sha256' | 'sha1'

export interface HashTask {
  id: number
  algorithm: Algorithm
  memory: SharedArrayBuffer
  sizeBytes: number
}

export interface HashResult {
  id: number
  digest: Uint8Array
}

parentPort?.on('message', (task: HashTask) => {
  const digest = hash(task.algorithm, new Uint8Array(task.memory, 0, task.sizeBytes), 'buffer')
  parentPort?.postMessage({ id: task.id, digest } satisfies HashResult)
})

// as main.ts does, for a thread of its own
flushCompileCache()
