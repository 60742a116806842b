import { z } from 'zod'
import { Fenced } from '../api/errors.ts'
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
    leaseDurationSeconds: z.number().nullish(),
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
  given: ElectionOptions,
  lead: (signal: AbortSignal) => Promise<void>,
  signal: AbortSignal,
): Promise<void> {
  const { clock = systemClock, leaseMs = 15_000, renewDeadlineMs = 10_000, retryMs = 2000, log } = given
  // Half, so that a request that got lost with its connection can be made again in time.
  const options = { ...given, cluster: given.cluster.within({ timeoutMs: renewDeadlineMs / 2 }) }
  let observed: { version: string; at: number } | undefined

  /** A holder of another version may have taken it for longer than we would. */
  const heldMs = ({ spec }: Lease) => {
    const seconds = spec.leaseDurationSeconds ?? 0
    return seconds > Math.ceil(leaseMs / 1000) ? seconds * 1000 : leaseMs
  }

  const acquire = async (): Promise<number | undefined> => {
    const lease = await read(options)
    const at = clock.monotonic()
    if (lease) {
      const version = lease.metadata.resourceVersion
      if (observed?.version !== version) observed = { version, at }
      const free = !lease.spec.holderIdentity || lease.spec.holderIdentity === options.identity
      if (!free && at - observed.at < heldMs(lease)) return undefined
    }
    if (!(await write(options, lease, leaseMs, options.identity))) return undefined
    // An answer this late says only that the lease was ours: another may have taken it since.
    return clock.monotonic() - at < renewDeadlineMs ? at : undefined
  }

  while (!signal.aborted) {
    const acquiredAt = await acquire().catch((error: unknown) => {
      log.debug({ err: error }, 'election: lease not reached')
      return undefined
    })
    if (acquiredAt !== undefined && signal.aborted) await letGo()
    else if (acquiredAt !== undefined) {
      log.info({ lease: options.name }, 'leading')
      await leadWhileHeld(acquiredAt)
      log.info({ lease: options.name }, 'not leading')
    }
    await clock.sleep(retryMs * (0.75 + Math.random() / 2), signal).catch(() => undefined)
  }

  async function leadWhileHeld(acquiredAt: number): Promise<void> {
    const lost = new AbortController()
    const stop = AbortSignal.any([signal, lost.signal])
    const done = lead(stop).catch((error: unknown) => {
      if (!stop.aborted) log.error({ lease: options.name, err: error }, 'leading failed')
    })
    const ended = new AbortController()
    const leading = done.then(() => ended.abort())
    let renewedAt = acquiredAt
    // Also while `lead` is stopping: nobody else may begin before it has ended.
    for (;;) {
      const restMs = Math.max(0, renewDeadlineMs - (clock.monotonic() - renewedAt))
      await clock.sleep(Math.min(retryMs, restMs), ended.signal).catch(() => undefined)
      if (ended.signal.aborted) break
      const at = clock.monotonic()
      const renewal = await renewWithin(renewDeadlineMs - (at - renewedAt))
      if (renewal === 'renewed') renewedAt = at
      else if (renewal === 'lost' || renewal === 'late') {
        log.error({ lease: options.name, why: renewal }, 'leadership lost')
        lost.abort(new Fenced('leadership lost'))
        await leading
        return
      }
    }
    await letGo()
  }

  /** So that the next one need not wait for the lease to end; if the API server doesn't answer, it will. */
  async function letGo(): Promise<void> {
    const released = new AbortController()
    const releasing = release(options, leaseMs).catch(() => undefined)
    await Promise.race([releasing, clock.sleep(retryMs, released.signal).catch(() => undefined)])
    released.abort()
  }

  async function renewWithin(remainingMs: number): Promise<'renewed' | 'lost' | 'failed' | 'late'> {
    if (remainingMs <= 0) return 'late'
    const answered = new AbortController()
    const late = clock.sleep(remainingMs, answered.signal).then(
      () => 'late' as const,
      () => 'failed' as const,
    )
    return Promise.race([renew().finally(() => answered.abort()), late])
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
