import type { z } from 'zod'
import { Fenced } from '../api/errors.ts'
import { type ClaimedJob, heartbeatAnswer, type JobClaim } from '../api/workerApi.ts'
import type { ApiClient } from '../runtime/apiClient.ts'
import type { Clock } from '../runtime/clock.ts'
import type { Logger } from '../runtime/log.ts'

/** The job is somebody else's, or may be by now: stop everything, tell the hub nothing. */
export class LeaseLost extends Error {
  override readonly name = 'LeaseLost'
}

export interface LeaseOptions {
  job: ClaimedJob
  hub: ApiClient
  clock: Clock
  log: Logger
  /** The monotonic time when the claim was asked for: the hub's lease can't have begun before. */
  askedAt: number
  /** A person wants the job ended. */
  onCancel: () => void
}

interface CallOptions<T> {
  schema?: z.ZodType<T>
  timeoutMs?: number
  signal?: AbortSignal
}

/**
 * This worker's right to a job, by its own monotonic clock. It ends `leaseMs` after the last heartbeat that succeeded
 * was sent, or when the hub says so. Whoever was frozen finds that out here: `check` comes before whatever is done.
 */
export class Lease {
  readonly #options: LeaseOptions
  readonly #claim: JobClaim
  readonly #lost = new AbortController()
  #leaseMs: number
  #endsAt: number

  constructor(options: LeaseOptions) {
    this.#options = options
    const { jobId, token, leaseMs } = options.job
    this.#claim = { jobId, token }
    this.#leaseMs = leaseMs
    this.#endsAt = options.askedAt + leaseMs
  }

  /** Aborted with LeaseLost. */
  get signal(): AbortSignal {
    return this.#lost.signal
  }

  /** Throws LeaseLost when the lease is over. */
  check(): void {
    if (!this.#lost.signal.aborted && this.#options.clock.monotonic() >= this.#endsAt)
      this.#lose(`no heartbeat succeeded for ${this.#leaseMs} ms`)
    this.#lost.signal.throwIfAborted()
  }

  /** A call that names the job. Throws LeaseLost, also when the hub refuses the token. */
  async call<T = unknown>(path: string, body: object, options: CallOptions<T> = {}): Promise<T> {
    this.check()
    const signal = options.signal ? AbortSignal.any([options.signal, this.signal]) : this.signal
    try {
      const answer = await this.#options.hub.request('POST', `/v1/worker/${path}`, {
        ...options,
        body: { ...body, ...this.#claim },
        signal,
      })
      this.check()
      return answer
    } catch (error) {
      if (error instanceof Fenced) this.#lose('the hub refused the token')
      this.check()
      throw error
    }
  }

  /** Prolongs the lease, until the signal or until it is lost. */
  async keep(signal: AbortSignal): Promise<void> {
    const { clock, job, log } = this.#options
    const stop = AbortSignal.any([signal, this.signal])
    const watch = this.#watch(stop)
    try {
      while (!stop.aborted) {
        const succeeded = await this.beat().catch((error: unknown) => {
          if (!stop.aborted) log.info({ err: error }, 'heartbeat failed')
          return false
        })
        // After a failure there are some more tries before the lease is over.
        await clock.sleep(succeeded ? job.heartbeatMs : Math.max(50, job.heartbeatMs / 3), stop)
      }
    } catch (error) {
      if (!stop.aborted) throw error
    }
    await watch
  }

  /** One heartbeat. */
  async beat(): Promise<boolean> {
    const sentAt = this.#options.clock.monotonic()
    const timeoutMs = Math.max(500, this.#leaseMs / 3)
    const { leaseMs, cancel } = await this.call('heartbeat', {}, { schema: heartbeatAnswer, timeoutMs })
    this.#leaseMs = leaseMs
    this.#endsAt = Math.max(this.#endsAt, sentAt + leaseMs)
    if (cancel) this.#options.onCancel()
    return true
  }

  /** Ends the lease when its time is over, whatever else hangs. */
  async #watch(stop: AbortSignal): Promise<void> {
    const { clock } = this.#options
    while (!stop.aborted) {
      await clock.sleep(Math.max(10, this.#endsAt - clock.monotonic()), stop).catch(() => undefined)
      if (stop.aborted) return
      try {
        this.check()
      } catch {
        return
      }
    }
  }

  #lose(why: string): void {
    if (this.#lost.signal.aborted) return
    this.#options.log.info({ why }, 'lease lost')
    this.#lost.abort(new LeaseLost(why))
  }
}
