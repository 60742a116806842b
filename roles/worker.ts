import { readFileSync } from 'node:fs'
import { readFile } from 'node:fs/promises'
import { z } from 'zod'
import { ApiClient } from '../runtime/apiClient.ts'
import type { Logger } from '../runtime/log.ts'
import { Metrics } from '../runtime/metrics.ts'
import { defaultLimits } from '../worker/limits.ts'
import { Worker } from '../worker/worker.ts'
import { address, file, readSettings, sizeBytes, spanMs } from './settings.ts'

const limits = defaultLimits()
const limit = sizeBytes.refine((bytes) => bytes >= 2 ** 20, 'want at least 1Mi')
const settings = {
  hubUrl: z.url(),
  /** The authority that signed the hub's certificate, PEM. */
  hubCa: file.optional(),
  /** The ServiceAccount's token for the audience `shoal-hub`; read again at each request. */
  tokenFile: file,
  workspace: z.string().startsWith('/', 'want an absolute path'),
  /** Where /probe, /healthz, /readyz and /metrics are served. */
  listen: address.default({ host: '127.0.0.1', port: 0 }),
  /** Where the hub reaches it. Default: where it listens. */
  probeUrl: z.url().optional(),
  /** How long a running build may go on after SIGTERM, before it is handed back. */
  grace: spanMs('0s'),
  /** The first part of its name; the Pod's. Default: the host's. */
  workerName: z.string().optional(),
  /** Its size: the class of its Deployment. */
  class: z.string().max(63).default('standard'),
  /** What one build may take: processes with their threads, memory, and disk with its cache. */
  maxProcesses: z.coerce.number().int().min(16).default(limits.maxProcesses),
  maxMemory: limit.default(limits.maxMemoryBytes),
  maxDisk: limit.default(limits.maxDiskBytes),
  /** Of what is kept between builds: mirrors of sources, and caches of pipelines. 0: nothing is. */
  cacheSize: sizeBytes.default(20 * 2 ** 30),
}

/** `shoal worker`. */
export async function workerRole(log: Logger, signal: AbortSignal): Promise<void> {
  const { hubUrl, hubCa, tokenFile, workspace, listen, probeUrl, grace, ...given } = readSettings(settings)
  await using hub = new ApiClient({
    baseUrl: hubUrl,
    ca: hubCa === undefined ? undefined : readFileSync(hubCa, 'utf8'),
    token: async () => (await readFile(tokenFile, 'utf8')).trim(),
  })
  const worker = new Worker({
    hub,
    workspace,
    probe: { ...listen, url: probeUrl },
    log,
    metrics: new Metrics(),
    graceMs: grace,
    host: given.workerName,
    class: given.class,
    secrets: [tokenFile],
    limits: { maxProcesses: given.maxProcesses, maxMemoryBytes: given.maxMemory, maxDiskBytes: given.maxDisk },
    cacheBytes: given.cacheSize,
  })
  await worker.run(signal)
}
