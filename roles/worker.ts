import { readFileSync } from 'node:fs'
import { z } from 'zod'
import { ApiClient } from '../runtime/apiClient.ts'
import type { Logger } from '../runtime/log.ts'
import { Metrics } from '../runtime/metrics.ts'
import { Worker } from '../worker/worker.ts'
import { address, file, readSettings } from './settings.ts'

const settings = {
  hubUrl: z.url(),
  hubCa: file,
  /** The ServiceAccount token for `shoal-hub`, read again at each request. */
  tokenFile: file,
  workspace: z.string().startsWith('/', 'want an absolute path'),
  listen: address.default({ host: '127.0.0.1', port: 0 }),
  /** Where the hub reaches `listen`; by default the address it got. */
  probeUrl: z.url().optional(),
}

/** `shoal worker`. */
export async function workerRole(log: Logger, signal: AbortSignal): Promise<void> {
  const { hubUrl, hubCa, tokenFile, ...rest } = readSettings(settings)
  const token = () => readFileSync(tokenFile, 'utf8').trim()
  await using hub = new ApiClient({ baseUrl: hubUrl, ca: readFileSync(hubCa, 'utf8'), token })
  await new Worker({ hub, ...rest, log, metrics: new Metrics() }).run(signal)
}
