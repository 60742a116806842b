import { Fenced, ShoalError } from '../api/errors.ts'
import { type ClaimedJob, heartbeatAnswer } from '../api/workerApi.ts'
import type { ApiClient } from '../runtime/apiClient.ts'
import type { Clock } from '../runtime/clock.ts'

interface CallOptions {
  body?: object
  timeoutMs?: number
}

/**
 * A job this worker holds: the lease that heartbeats prolong, and the only way to speak to the hub about the job. The
 * signal aborts when the job must be dropped: the hub refused the token, no heartbeat succeeded for a whole lease of
 * this process' own monotonic clock (it may have been frozen meanwhile), a person cancelled it, or the worker stops.
 */
export class HeldJob {
  readonly job: ClaimedJob
  readonly #hub: ApiClient
  readonly #clock: Clock
  readonly #abort = new AbortController()
  readonly #beating = new AbortController()
  #leaseEndsAt: number

  /** `askedAt`: when the claim was asked for; the lease counts from there, since the hub's does from no earlier. */
  constructor(job: ClaimedJob, options: { hub: ApiClient; clock: Clock; askedAt: number }) {
    this.job = job
    this.#hub = options.hub
    this.#clock = options.clock
    this.#leaseEndsAt = options.askedAt + job.leaseMs
  }

  get signal(): AbortSignal {
    return this.#abort.signal
  }

  /** Throws why the job was dropped; drops it now if its lease has ended unnoticed. */
  check(): void {
    if (!this.#abort.signal.aborted && this.#clock.monotonic() >= this.#leaseEndsAt)
      this.drop(new Fenced('no heartbeat succeeded for a whole lease'))
    this.#abort.signal.throwIfAborted()
  }

  drop(why: ShoalError): void {
    this.#abort.abort(why)
  }

  /** POST /v1/worker/<path> with the job's token. A refused token drops the job. */
  async call(path: string, { body, timeoutMs = 15_000 }: CallOptions = {}): Promise<unknown> {
    this.check()
    const { jobId, token } = this.job
    try {
      const signal = this.#abort.signal
      return await this.#hub.request('POST', `/v1/worker/${path}`, {
        body: { jobId, token, ...body },
        timeoutMs,
        signal,
      })
    } catch (error) {
      if (error instanceof Fenced) this.drop(error)
      throw error
    }
  }

  /** Says how the job ended, also after it was dropped, again and again until the hub has answered or the lease is over. */
  async finish(outcome: object): Promise<void> {
    const { jobId, token } = this.job
    while (this.#clock.monotonic() < this.#leaseEndsAt) {
      try {
        await this.#hub.request('POST', '/v1/worker/finish', { body: { jobId, token, outcome } })
        return
      } catch (error) {
        if (!(error instanceof ShoalError) || error instanceof Fenced || error.code === 'Invalid') throw error
        await this.#clock.sleep(500)
      }
    }
    throw new Fenced('the hub did not answer before the lease ended')
  }

  /** Prolongs the lease until the job is dropped or `stop` is called. */
  async beat(): Promise<void> {
    const ended = AbortSignal.any([this.#abort.signal, this.#beating.signal])
    while (!ended.aborted) {
      const left = this.#leaseEndsAt - this.#clock.monotonic()
      await this.#clock.sleep(Math.max(0, Math.min(this.job.heartbeatMs, left)), ended).catch(() => undefined)
      if (ended.aborted) return
      const sentAt = this.#clock.monotonic()
      try {
        const timeoutMs = Math.max(1000, this.job.heartbeatMs)
        const { leaseMs, cancel } = heartbeatAnswer.parse(await this.call('heartbeat', { timeoutMs }))
        this.#leaseEndsAt = sentAt + leaseMs
        if (cancel) this.drop(new ShoalError('Cancelled', 'a person cancelled the job'))
      } catch {
        // Dropped, or the hub is away: the next beat sees which.
      }
    }
  }

  stop(): void {
    this.#beating.abort()
  }
}
