import { z } from 'zod'
import { Agent } from '../agent/agent.ts'
import type { Logger } from '../runtime/log.ts'
import { address, file, readSettings } from './settings.ts'

const settings = {
  enrolment: file,
  /** On Kubernetes: the ServiceAccount token for this region. */
  tokenFile: file.optional(),
  dataDir: z.string().startsWith('/', 'want an absolute path'),
  /** Where /healthz, /readyz and /metrics are served. */
  listen: address.default({ host: '127.0.0.1', port: 0 }),
  swarmListen: address.default({ host: '0.0.0.0', port: 0 }),
  /** What peers dial: this machine's own name or address. */
  address: z.string(),
  /** `nsenter`: applications run on the host, outside the container this agent is in. */
  host: z.enum(['nsenter']).optional(),
  uploadBytesPerSecond: z.coerce.number().int().positive().optional(),
}

/** `shoal agent`. */
export async function agentRole(log: Logger, signal: AbortSignal): Promise<void> {
  const { enrolment, tokenFile, dataDir, listen, swarmListen, host, uploadBytesPerSecond, ...rest } =
    readSettings(settings)
  const agent = new Agent({
    enrolmentFile: enrolment,
    ...(tokenFile !== undefined && { tokenFile }),
    dataDir,
    listen,
    swarm: {
      ...swarmListen,
      address: rest.address,
      ...(uploadBytesPerSecond !== undefined && { uploadBytesPerSecond }),
    },
    ...(host === 'nsenter' && { host: { nsenter: true } }),
    log,
  })
  await agent.run(signal)
}
