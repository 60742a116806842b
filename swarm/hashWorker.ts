/** Runs in a worker thread: SHA-256 of shared memory, so that the thread with the sockets never stops for it. */
import { hash } from 'node:crypto'
import { parentPort } from 'node:worker_threads'

export interface HashTask {
  id: number
  memory: SharedArrayBuffer
  sizeBytes: number
}

export interface HashResult {
  id: number
  digest: Uint8Array
}

parentPort?.on('message', (task: HashTask) => {
  const digest = hash('sha256', new Uint8Array(task.memory, 0, task.sizeBytes), 'buffer')
  parentPort?.postMessage({ id: task.id, digest } satisfies HashResult)
})
