import { z } from 'zod'
import { type Clock, systemClock } from './clock.ts'
import { type AnyObject, ApiError, type Cluster } from './cluster.ts'
import { core } from './core.ts'
import type { Logger } from './log.ts'

export interface ElectionOptions {
  cluster: Cluster
  namespace: string
  name: string
  /** Unique per process. */
  identity: string
  log: Logger
  clock?: Clock
  /** Default: 15 s. */
  leaseMs?: number
  /** A leader that could not renew for so long stops leading, before anyone else may begin. Default: 10 s. */
  renewDeadlineMs?: number
  /** Default: 2 s. */
  retryMs?: number
}

const leaseSchema = z.looseObject({
  metadata: z.looseObject({ name: z.string(), resourceVersion: z.string() }),
  spec: z.looseObject({
    holderIdentity: z.string().nullish(),
    leaseTransitions: z.number().nullish(),
    renewTime: z.string().nullish(),
  }),
})
type Lease = z.infer<typeof leaseSchema>

/**
 * Calls `lead` while this process holds the Lease, again each time it gets it, until the signal aborts. Others' leases
 * are taken over only when they did not change for leaseMs of this process' own monotonic clock, and an own lease that
 * could not be renewed within renewDeadlineMs ends `lead`: clocks may differ, there is never more than one leader.
 */
export async function runElected(
  options: ElectionOptions,
  lead: (signal: AbortSignal) => Promise<void>,
  signal: AbortSignal,
): Promise<void> {
  const { clock = systemClock, leaseMs = 15_000, renewDeadlineMs = 10_000, retryMs = 2000, log } = options
  let observed: { version: string; at: number } | undefined

  const acquire = async (): Promise<number | undefined> => {
    const lease = await read(options)
    const at = clock.monotonic()
    if (lease) {
      const version = lease.metadata.resourceVersion
      if (observed?.version !== version) observed = { version, at }
      const free = !lease.spec.holderIdentity || lease.spec.holderIdentity === options.identity
      if (!free && at - observed.at < leaseMs) return undefined
    }
    return (await write(options, lease, leaseMs, options.identity)) ? at : undefined
  }

  while (!signal.aborted) {
    const acquiredAt = await acquire().catch((error: unknown) => {
      log.debug({ err: error }, 'election: lease not reached')
      return undefined
    })
    if (acquiredAt !== undefined) {
      log.info({ lease: options.name }, 'leading')
      await leadWhileHeld(acquiredAt)
      log.info({ lease: options.name }, 'not leading')
    }
    await clock.sleep(retryMs * (0.75 + Math.random() / 2), signal).catch(() => undefined)
  }

  async function leadWhileHeld(acquiredAt: number): Promise<void> {
    const lost = new AbortController()
    const done = lead(AbortSignal.any([signal, lost.signal])).catch((error: unknown) => {
      log.error({ err: error }, 'leading failed')
    })
    const ended = new AbortController()
    const leading = done.then(() => ended.abort())
    let renewedAt = acquiredAt
    while (!signal.aborted && !ended.signal.aborted) {
      await clock.sleep(retryMs, AbortSignal.any([signal, ended.signal])).catch(() => undefined)
      if (signal.aborted || ended.signal.aborted) break
      const at = clock.monotonic()
      const remainingMs = renewDeadlineMs - (at - renewedAt)
      const renewal =
        remainingMs <= 0 ? 'late' : await Promise.race([renew(), clock.sleep(remainingMs).then(() => 'late' as const)])
      if (renewal === 'renewed') renewedAt = at
      else if (renewal === 'lost' || renewal === 'late') break
    }
    lost.abort()
    await leading
    await release(options, leaseMs).catch(() => undefined)
  }

  async function renew(): Promise<'renewed' | 'lost' | 'failed'> {
    try {
      const lease = await read(options)
      if (lease?.spec.holderIdentity !== options.identity) return 'lost'
      return (await write(options, lease, leaseMs, options.identity)) ? 'renewed' : 'failed'
    } catch {
      return 'failed'
    }
  }
}

async function read({ cluster, namespace, name }: ElectionOptions): Promise<Lease | undefined> {
  const lease = await cluster.get(core.Lease, namespace, name)
  return lease && leaseSchema.parse(lease)
}

/** False when someone else wrote it first. */
async function write(
  { cluster, namespace, name, clock = systemClock }: ElectionOptions,
  lease: Lease | undefined,
  leaseMs: number,
  holder: string,
): Promise<boolean> {
  // metav1.MicroTime wants six digits.
  const now = new Date(clock.now()).toISOString().replace('Z', '000Z')
  const taken = lease?.spec.holderIdentity !== holder
  const spec = {
    ...lease?.spec,
    holderIdentity: holder,
    leaseDurationSeconds: Math.max(1, Math.ceil(leaseMs / 1000)),
    renewTime: now,
    ...(taken && { acquireTime: now, leaseTransitions: (lease?.spec.leaseTransitions ?? 0) + (lease ? 1 : 0) }),
  }
  try {
    if (lease) await cluster.replace(core.Lease, { ...lease, spec } as AnyObject)
    else await cluster.create(core.Lease, { metadata: { name, namespace }, spec })
    return true
  } catch (error) {
    if (error instanceof ApiError && error.status === 409) return false
    throw error
  }
}

async function release(options: ElectionOptions, leaseMs: number): Promise<void> {
  const lease = await read(options)
  if (lease?.spec.holderIdentity === options.identity) await write(options, lease, leaseMs, '')
}
