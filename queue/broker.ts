import { setImmediate } from 'node:timers/promises'
import type { JobClaim } from '../api/workerApi.ts'
import type { Clock } from '../runtime/clock.ts'
import type { Logger } from '../runtime/log.ts'
import type { Counter, Metrics } from '../runtime/metrics.ts'
import type { Database } from '../runtime/sql.ts'
import { type Claim, type Claimer, claimedBefore, hear, pollOf, takeClaims } from './claim.ts'
import { type Finish, type Outcome, takeFinishes } from './finish.ts'
import type { TargetOf } from './newLease.ts'

export interface BrokerOptions {
  database: Database
  clock: Clock
  log: Logger
  metrics?: Metrics
  /** What a claim fixes for its job. */
  targetOf?: TargetOf
  /** Claims, and finishes, in one transaction. Default 200. */
  maxBatch?: number
  /** Between two looks whether another replica queued something, while workers wait. Default 80 ms. */
  lookMs?: number
  /** A worker that asks while nothing is ready is noted within this time, with the others. Default 1 s. */
  gatherMs?: number
}

interface Asker {
  claimer: Claimer
  /** Of this process's monotonic clock. */
  untilMs: number
  /** Whether a former poll of the same id had an answer that was lost was looked up. */
  known: boolean
  /** Its worker was draining when it was looked at: until it asks again it is passed over. */
  draining: boolean
  gone: boolean
  resolve: (claim: Claim | undefined) => void
  reject: (error: unknown) => void
}

interface Finisher extends Finish {
  resolve: () => void
  reject: (error: unknown) => void
}

/** `last_seen` of a worker that asks all the time is written so often; the health checker looks for minutes. */
const rehearMs = 5000

/**
 * Answers the claims and finishes of thousands of workers by few transactions. Who asks while nothing is ready waits
 * here; what comes meanwhile is claimed for all who wait at once, and while one turn is under way the next one gathers.
 * What is true stays in the rows: any number of replicas do this at the same time.
 */
export class Broker {
  readonly #o: BrokerOptions
  readonly #maxBatch: number
  readonly #claims: Counter | undefined
  #askers: Asker[] = []
  #finishers: Finisher[] = []
  /** There may be jobs in line. */
  #hinted = true
  /** How often that was said from outside. */
  #hints = 0
  #taking = false
  /** When each worker was last noted, of this process's monotonic clock. */
  #heard = new Map<string, number>()
  /** Digests of targets that need not be kept again. */
  readonly #kept = new Set<string>()
  #ended = false
  #asked = Promise.withResolvers<void>()

  constructor(options: BrokerOptions) {
    this.#o = options
    this.#maxBatch = options.maxBatch ?? 200
    this.#claims = options.metrics?.counter('claims_total', 'Jobs handed to workers.')
  }

  /** Workers that wait for work here. */
  get waiting(): number {
    return this.#askers.length
  }

  /** A job, as soon as there is one; undefined when there was none for `waitMs`, or the broker ends. */
  ask(claimer: Claimer, { waitMs, signal }: { waitMs: number; signal: AbortSignal }): Promise<Claim | undefined> {
    if (this.#ended || signal.aborted) return Promise.resolve(undefined)
    const { promise, resolve, reject } = Promise.withResolvers<Claim | undefined>()
    const untilMs = this.#o.clock.monotonic() + waitMs
    const asker: Asker = { claimer, untilMs, known: false, draining: false, gone: false, resolve, reject }
    const leave = () => this.#leave(asker)
    signal.addEventListener('abort', leave, { once: true })
    this.#askers.push(asker)
    this.#asked.resolve()
    void this.#pump()
    return promise.finally(() => signal.removeEventListener('abort', leave))
  }

  /** As `finish` of finish.ts, with the others that come at the same time. Throws Fenced. */
  finish(claim: JobClaim, outcome: Outcome): Promise<void> {
    const { promise, resolve, reject } = Promise.withResolvers<void>()
    this.#finishers.push({ claim, outcome, resolve, reject })
    void this.#pump()
    return promise
  }

  /** Something may be ready. */
  notify(): void {
    this.#hinted = true
    this.#hints++
    void this.#pump()
  }

  /** Looks for what other replicas queued, until the signal; who waits then gets no job. Finishes are taken also later. */
  async run(signal: AbortSignal): Promise<void> {
    const { clock, lookMs = 80, gatherMs = 1000 } = this.#o
    let gatheredMs = Number.NEGATIVE_INFINITY
    signal.addEventListener('abort', () => this.#asked.resolve(), { once: true })
    while (!signal.aborted) {
      if (this.#askers.length === 0) {
        this.#asked = Promise.withResolvers()
        await this.#asked.promise
      }
      const nowMs = clock.monotonic()
      if (!this.#hinted && !this.#taking) {
        const gathers = nowMs - gatheredMs >= gatherMs
        if (gathers) gatheredMs = nowMs
        await this.#look(gathers).catch((error: unknown) => this.#rejectAskers(this.#askers.splice(0), error))
      }
      this.#expire(clock.monotonic())
      await clock.sleep(lookMs, signal).catch(() => undefined)
    }
    this.#ended = true
    for (const asker of this.#askers.splice(0)) asker.resolve(undefined)
  }

  /**
   * Takes turns for what is there, one at a time. Two at once were no faster, took half as much again of the database's CPU
   * for smaller turns, and waited for each other's pipelines. Finishes go first, alone, so that claims wait for those that
   * ask next: half as many statements, with twice as much in each.
   */
  async #pump(): Promise<void> {
    if (this.#taking) return
    this.#taking = true
    // Who comes in the same round of the event loop, such as those just answered, comes along.
    for (;;) {
      await setImmediate()
      const finishers = this.#finishers.splice(0, this.#maxBatch)
      const asks = finishers.length === 0 && this.#hinted && !this.#ended
      const askers = asks ? this.#askers.filter(({ draining }) => !draining).slice(0, this.#maxBatch) : []
      if (finishers.length > 0) await this.#finish(finishers)
      else if (askers.length > 0) await this.#claim(askers)
      else break
    }
    this.#taking = false
  }

  async #finish(finishers: Finisher[]): Promise<void> {
    try {
      const { refusals, more } = await takeFinishes(this.#o.database, finishers)
      for (const [i, { resolve, reject }] of finishers.entries()) refusals[i] ? reject(refusals[i]) : resolve()
      if (more) this.#hinted = true
    } catch (error) {
      // One that can't be taken must not keep the others from it.
      if (finishers.length === 1) finishers[0]?.reject(error)
      else for (const one of finishers) await this.#finish([one])
    }
  }

  async #claim(askers: Asker[]): Promise<void> {
    const hints = this.#hints
    const asking = new Set(askers)
    this.#askers = this.#askers.filter((asker) => !asking.has(asker))
    try {
      await this.#hear(askers)
      const more = await this.#take(askers)
      if (more) this.#hinted = true
      // Only who asked for jobs and got none knows that there are none.
      else if (hints === this.#hints) this.#hinted = false
    } catch (error) {
      this.#rejectAskers(askers, error)
    }
  }

  /** Whether there may be more in line. */
  async #take(askers: Asker[]): Promise<boolean> {
    const { database, targetOf } = this.#o
    const { claims, more } = await takeClaims(database, {
      claimers: askers.map(({ claimer }) => claimer),
      kept: this.#kept,
      ...(targetOf && { targetOf }),
    })
    let forgotten = false
    const rest = askers.filter((asker, i) => {
      const claim = claims[i]
      asker.draining = claim === 'draining'
      if (claim === 'unknown') this.#heard.delete(asker.claimer.worker)
      forgotten ||= claim === 'unknown'
      if (typeof claim !== 'object') return true
      this.#claims?.inc()
      this.#give(asker, claim)
      return false
    })
    // While they were with the database nobody waited here, and nobody looked.
    this.#askers = [...rest.filter(({ gone }) => !gone), ...this.#askers]
    this.#asked.resolve()
    await this.#lookUp(rest)
    return more || forgotten
  }

  #give(asker: Asker, claim: Claim): void {
    if (!asker.gone) {
      asker.resolve(claim)
      return
    }
    // It was claimed for one who hung up meanwhile. Where this fails, the lease ends by itself.
    const { log } = this.#o
    const { job, token } = claim
    void this.finish({ jobId: job.id, token }, { result: 'HandedBack' }).then(
      () => this.notify(),
      (error: unknown) => log.info({ err: error, jobId: job.id }, 'handing back a job that nobody waits for failed'),
    )
  }

  /** Gives those that ask again, since an answer was lost, what they were given. */
  async #lookUp(askers: Asker[]): Promise<void> {
    const unknown = askers.filter(({ known, gone }) => !known && !gone)
    const before = await claimedBefore(
      this.#o.database,
      unknown.map(({ claimer }) => claimer),
    )
    for (const asker of unknown) {
      asker.known = true
      const claim = before.get(pollOf(asker.claimer))
      if (!claim) continue
      this.#askers = this.#askers.filter((other) => other !== asker)
      this.#give(asker, claim)
    }
  }

  /** `gathers`: those that are new here are noted, and looked up. */
  async #look(gathers: boolean): Promise<void> {
    // Index: PRIMARY of ready; locks nothing.
    if ((await this.#o.database.query('SELECT 1 FROM ready LIMIT 1')).length > 0) return this.notify()
    if (!gathers) return
    const unknown = this.#askers.filter(({ known }) => !known)
    for (let i = 0; i < unknown.length; i += this.#maxBatch) {
      const batch = unknown.slice(i, i + this.#maxBatch)
      await this.#hear(batch)
      await this.#lookUp(batch)
    }
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

  #rejectAskers(askers: Asker[], error: unknown): void {
    this.#o.log.error({ err: error }, 'claiming for waiting workers failed')
    for (const asker of askers) asker.reject(error)
  }

  #leave(asker: Asker): void {
    asker.gone = true
    this.#askers = this.#askers.filter((other) => other !== asker)
    asker.resolve(undefined)
  }

  #expire(nowMs: number): void {
    const over = new Set(this.#askers.filter(({ untilMs }) => untilMs <= nowMs))
    if (over.size === 0) return
    this.#askers = this.#askers.filter((asker) => !over.has(asker))
    for (const asker of over) asker.resolve(undefined)
  }
}
