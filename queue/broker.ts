import type { Clock } from '../runtime/clock.ts'
import type { Logger } from '../runtime/log.ts'
import type { Counter, Metrics } from '../runtime/metrics.ts'
import type { Database } from '../runtime/sql.ts'
import { type Claim, type Claimer, claimMany, hear } from './claim.ts'
import { finish } from './lease.ts'

export interface ClaimBrokerOptions {
  database: Database
  leaseMs: number
  clock: Clock
  log: Logger
  /** Claims in one transaction. Default 200: one connection makes 10,000 claims a second of them, 8 of single ones 1,000. */
  maxBatch?: number
  /** Between two looks whether another replica queued something, while workers wait. Default 80 ms. */
  lookMs?: number
  /** A worker that asks while nothing is ready is noted within this time, with the others. Default 1 s. */
  gatherMs?: number
  metrics?: Metrics
}

interface Asker {
  claimer: Claimer
  /** Of this process's monotonic clock. */
  untilMs: number
  /** Whether a former poll of the same id had an answer that was lost was looked up. */
  known: boolean
  resolve: (claim: Claim | undefined) => void
  reject: (error: unknown) => void
  gone: boolean
  /** Its worker was draining when it was looked at: until it asks again it is passed over. */
  draining: boolean
}

/** `last_seen` of a worker that asks all the time is written so often; the health checker looks for minutes. */
const rehearMs = 5000

/**
 * Answers the claims of thousands of workers from few transactions. Who asks while nothing is ready waits here; what
 * comes meanwhile is claimed for all who wait at once, and while one batch is under way the next one gathers. What is
 * true stays in the rows: any number of replicas do this at the same time.
 */
export class ClaimBroker {
  readonly #o: ClaimBrokerOptions
  readonly #maxBatch: number
  readonly #claims: Counter | undefined
  #waiting: Asker[] = []
  /** There may be more in line than was claimed. */
  #hinted = false
  /** When each worker was last noted, of this process's monotonic clock. */
  #heard = new Map<string, number>()
  #ended = false
  #wake = Promise.withResolvers<void>()
  #pausing: AbortController | undefined

  constructor(options: ClaimBrokerOptions) {
    this.#o = options
    this.#maxBatch = options.maxBatch ?? 200
    this.#claims = options.metrics?.counter('claims_total', 'Jobs handed to workers.')
  }

  /** Workers that wait for work here. */
  get waiting(): number {
    return this.#waiting.length
  }

  /** A job, as soon as there is one; undefined when there was none for `waitMs`, or the broker ends. */
  ask(claimer: Claimer, { waitMs, signal }: { waitMs: number; signal: AbortSignal }): Promise<Claim | undefined> {
    if (this.#ended) return Promise.resolve(undefined)
    const { promise, resolve, reject } = Promise.withResolvers<Claim | undefined>()
    const untilMs = this.#o.clock.monotonic() + waitMs
    const asker: Asker = { claimer, untilMs, known: false, resolve, reject, gone: signal.aborted, draining: false }
    const leave = () => this.#leave(asker)
    signal.addEventListener('abort', leave, { once: true })
    this.#waiting.push(asker)
    this.#wake.resolve()
    return promise.finally(() => signal.removeEventListener('abort', leave))
  }

  /** Something may be ready. */
  notify(): void {
    this.#hinted = true
    this.#pausing?.abort()
    this.#wake.resolve()
  }

  /** Serves until the signal; who waits then gets no job. */
  async run(signal: AbortSignal): Promise<void> {
    const { clock, log, lookMs = 80, gatherMs = 1000 } = this.#o
    let gatheredMs = Number.NEGATIVE_INFINITY
    signal.addEventListener('abort', () => this.#wake.resolve(), { once: true })
    while (!signal.aborted) {
      if (this.#waiting.length === 0) await this.#wake.promise
      this.#wake = Promise.withResolvers()
      try {
        const nowMs = clock.monotonic()
        if (this.#hinted || (await this.#somethingIsReady())) {
          this.#hinted = false
          const ready = this.#waiting.filter((asker) => !asker.draining)
          const served = await this.#claim(ready.slice(0, this.#maxBatch))
          this.#hinted ||= served
        } else if (nowMs - gatheredMs >= gatherMs) {
          gatheredMs = nowMs
          const unknown = this.#waiting.filter((asker) => !asker.known)
          for (let i = 0; i < unknown.length; i += this.#maxBatch)
            await this.#claim(unknown.slice(i, i + this.#maxBatch))
        }
      } catch (error) {
        log.error({ err: error }, 'claiming for waiting workers failed')
        for (const asker of this.#waiting.splice(0)) asker.reject(error)
      }
      this.#expire(clock.monotonic())
      if (this.#waiting.length > 0 && !this.#hinted) await this.#pause(lookMs, signal)
    }
    this.#ended = true
    for (const asker of this.#waiting.splice(0)) asker.resolve(undefined)
  }

  /** Index: PRIMARY of ready; locks nothing. */
  async #somethingIsReady(): Promise<boolean> {
    if (this.#waiting.length === 0) return false
    return (await this.#o.database.query('SELECT 1 FROM ready LIMIT 1')).length > 0
  }

  /** Whether all that may have one got a job: then there may be more. */
  async #claim(askers: Asker[]): Promise<boolean> {
    const batch = askers.filter((asker) => !asker.gone)
    if (batch.length === 0) return false
    const { database, leaseMs } = this.#o
    await this.#hear(batch)
    const claims = await claimMany(
      database,
      batch.map(({ claimer }) => claimer),
      leaseMs,
    )
    const served = new Set<Asker>()
    batch.forEach((asker, i) => {
      asker.known = true
      const claim = claims[i]
      asker.draining = claim === 'draining'
      if (!claim || claim === 'draining') return
      served.add(asker)
      this.#claims?.inc()
      if (asker.gone) void this.#giveBack(claim)
      else asker.resolve(claim)
    })
    this.#waiting = this.#waiting.filter((asker) => !served.has(asker))
    const asked = batch.filter((asker) => !asker.draining).length
    return asked > 0 && served.size === asked
  }

  /** Notes workers that were not noted for a while, before they may hold a lease. */
  async #hear(askers: Asker[]): Promise<void> {
    const nowMs = this.#o.clock.monotonic()
    for (const [worker, heardMs] of this.#heard) {
      if (nowMs - heardMs < rehearMs) break
      this.#heard.delete(worker)
    }
    const claimers = askers.map(({ claimer }) => claimer).filter(({ worker }) => !this.#heard.has(worker))
    await hear(this.#o.database, claimers)
    for (const { worker } of claimers) this.#heard.set(worker, nowMs)
  }

  /** It was claimed for one who hung up meanwhile. Where this fails, the lease ends by itself. */
  async #giveBack({ job, token }: Claim): Promise<void> {
    const { database, log } = this.#o
    await finish(database, { jobId: job.id, token }, { result: 'HandedBack' }).catch((error: unknown) =>
      log.info({ err: error, jobId: job.id }, 'handing back a job that nobody waits for failed'),
    )
    this.notify()
  }

  #leave(asker: Asker): void {
    asker.gone = true
    this.#waiting = this.#waiting.filter((other) => other !== asker)
    asker.resolve(undefined)
  }

  #expire(nowMs: number): void {
    const over = new Set(this.#waiting.filter(({ untilMs }) => untilMs <= nowMs))
    if (over.size === 0) return
    this.#waiting = this.#waiting.filter((asker) => !over.has(asker))
    for (const asker of over) asker.resolve(undefined)
  }

  /** A hint ends it. New askers don't: many of them are one batch at the next look. */
  async #pause(ms: number, signal: AbortSignal): Promise<void> {
    this.#pausing = new AbortController()
    await this.#o.clock.sleep(ms, AbortSignal.any([signal, this.#pausing.signal])).catch(() => undefined)
    this.#pausing = undefined
  }
}
