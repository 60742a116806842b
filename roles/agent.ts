import { z } from 'zod'
import { Agent } from '../agent/agent.ts'
import type { Logger } from '../runtime/log.ts'
import { parseRateSchedule } from '../swarm/rateSchedule.ts'
import { address, file, readSettings } from './settings.ts'

/** Bytes a second, or by hours. */
const rate = z.string().transform((text, context) => {
  try {
    return parseRateSchedule(text)
  } catch (error) {
    context.addIssue({ code: 'custom', message: (error as Error).message })
    return z.NEVER
  }
})

const settings = {
  enrolment: file,
  /** On Kubernetes: the ServiceAccount token for this region. */
  tokenFile: file.optional(),
  dataDir: z.string().startsWith('/', 'want an absolute path'),
  /** Where /healthz, /readyz, /metrics and /v1/swarms are served. */
  listen: address.default({ host: '127.0.0.1', port: 0 }),
  swarmListen: address.default({ host: '0.0.0.0', port: 0 }),
  /** What peers dial: this machine's own name or address. */
  address: z.string(),
  /** `nsenter`: applications run on the host, outside the container this agent is in. */
  host: z.enum(['nsenter']).optional(),
  /** Every machine gives; none is to give all of its link. */
  uploadBytesPerSecond: rate.prefault('200000000'),
  downloadBytesPerSecond: rate.optional(),
}

/** `shoal agent`. */
export async function agentRole(log: Logger, signal: AbortSignal): Promise<void> {
  const { enrolment, tokenFile, dataDir, listen, swarmListen, host, ...rest } = readSettings(settings)
  const agent = new Agent({
    enrolmentFile: enrolment,
    ...(tokenFile !== undefined && { tokenFile }),
    dataDir,
    listen,
    swarm: {
      ...swarmListen,
      address: rest.address,
      uploadLimit: rest.uploadBytesPerSecond,
      downloadLimit: rest.downloadBytesPerSecond,
    },
    ...(host === 'nsenter' && { host: { nsenter: true } }),
    log,
  })
  await agent.run(signal)
}
