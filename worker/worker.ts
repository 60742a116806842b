/**
 * worker/: builds one job at a time. It claims a job from the hub, fetches its commit by way of a mirror, runs the build
 * in a folder, as a user and within limits of its own, uploads what the build left, and says how it went.
 *
 *   claim ─▶ fetch ─▶ checkout, build ─▶ kill what is left of it ─▶ hash, upload ─▶ finish
 *     │         heartbeats and log all the while                                      │
 *     └─────────────── next job ◀───── folder removed ◀───────────────────────────────┘
 *
 * It promises: when its lease is over by its own clock, or the hub refuses its token, the build is killed and nothing
 * more is said of the job. Nothing of a build outlives its job: no process, no file but its pipeline's cache. A build sees
 * nothing of ours, nor of other builds, and takes no more than its limits. Nothing here is global; what it keeps in its
 * workspace is worth nothing but time.
 */
import { randomBytes, timingSafeEqual } from 'node:crypto'
import { hostname } from 'node:os'
import { join } from 'node:path'
import { ShoalError, Stalled } from '../api/errors.ts'
import type { FinishRequest, JobClaim, ProbeAnswer } from '../api/workerApi.ts'
import type { ApiClient } from '../runtime/apiClient.ts'
import { type Clock, systemClock } from '../runtime/clock.ts'
import type { Logger } from '../runtime/log.ts'
import type { Metrics } from '../runtime/metrics.ts'
import { bearerToken, createServer, listen } from '../runtime/server.ts'
import { takeBuildUser } from './buildUser.ts'
import { Isolation } from './isolation.ts'
import { type BuildPlace, runJob, Stopped } from './job.ts'
import { JobLog } from './jobLog.ts'
import { Lease, LeaseLost } from './lease.ts'
import { defaultLimits, type Limits } from './limits.ts'
import { type Claimed, Poller } from './poller.ts'
import { Shelf } from './shelf.ts'
import { Workspace } from './workspace.ts'

export interface WorkerOptions {
  hub: ApiClient
  /** May be shared by several workers; absolute. */
  workspace: string
  /** Where it listens, and where the hub reaches that. Default of `url`: where it listens. */
  probe: { host: string; port: number; url?: string | undefined }
  log: Logger
  metrics: Metrics
  /** Unique per process. Default: host, process id and a random part. */
  name?: string
  /** On Kubernetes, the Pod's name, by which the hub finds it. Default: the host's name. */
  host?: string | undefined
  /** Its size. Default: standard. */
  class?: string | undefined
  clock?: Clock
  /** When root: builds run as a user of these. Default: 256 from 20000. */
  buildUids?: { first: number; count: number }
  /** Files that builds must not be able to read: a worker whose builds could does not start. */
  secrets?: string[]
  /** Default: those of `defaultLimits`. */
  limits?: Limits
  /** Of mirrors and caches, of all workers that share the workspace. Default: 0, which is none. */
  cacheBytes?: number
  /** How long a running build may go on once the worker is to stop. Default: 0. */
  graceMs?: number
}

/** So long the hub is told of a job's end; then its lease may run out. */
const finishMs = 10 * 60_000
/** The same, once the worker is to stop. */
const farewellMs = 10_000
const leaveMs = 2000

export class Worker {
  readonly #options: WorkerOptions
  readonly #clock: Clock
  readonly #name: string
  readonly #probeSecret = randomBytes(32).toString('hex')
  readonly #poller: Poller
  #held: JobClaim | undefined

  constructor(options: WorkerOptions) {
    this.#options = options
    this.#clock = options.clock ?? systemClock
    const host = (options.host ?? hostname()).slice(0, 100)
    this.#name = options.name ?? `${host}-${process.pid}-${randomBytes(4).toString('hex')}`
    this.#poller = new Poller({ hub: options.hub, clock: this.#clock, log: options.log })
  }

  /** Until the signal; a running job is handed back then. Throws Stalled `ConfigInvalid`. */
  async run(signal: AbortSignal): Promise<void> {
    const { log, probe, secrets = [], buildUids = { first: 20_000, count: 256 } } = this.#options
    await using workspace = await Workspace.open(this.#options.workspace, log)
    await using user = await takeBuildUser({ uids: buildUids, folder: workspace.path, secrets, log })
    const place = await this.#place(workspace, user.uid)
    const { text: isolation } = place.isolation
    const server = this.#server()
    const { url } = await listen(server, probe)
    log.info({ worker: this.#name, url, isolation }, 'listening')
    const identity = { worker: this.#name, probeSecret: this.#probeSecret }
    const claimer = { ...identity, probeUrl: probe.url ?? url, class: this.#options.class, isolation }
    try {
      while (!signal.aborted) {
        const claimed = await this.#poller.next(claimer, signal, (job) => {
          this.#held = { jobId: job.jobId, token: job.token }
        })
        if (claimed) await this.#work(claimed, place, signal)
      }
    } finally {
      // A hub that doesn't hear it will call the worker silent.
      await this.#options.hub
        .request('POST', '/v1/worker/leave', { body: identity, timeoutMs: leaveMs })
        .catch((error: unknown) => log.info({ err: error }, 'the hub was not told that this worker stops'))
      await server.close()
    }
  }

  async #place(workspace: Workspace, uid: number | undefined): Promise<BuildPlace> {
    const { log, limits = defaultLimits(), cacheBytes = 0, workspace: parent } = this.#options
    await workspace.removeAbandoned()
    const isolation = await Isolation.open({ uid, limits, log })
    if (uid === undefined || cacheBytes === 0) return { workspace, isolation, shelf: undefined, log }
    const shelf = await Shelf.open({ path: join(parent, 'cache'), maxBytes: cacheBytes, log })
    await shelf.close(uid)
    return { workspace, isolation, shelf, log }
  }

  #server() {
    const { log, metrics } = this.#options
    const ready = () => (this.#poller.answered ? [] : ['the hub has not answered yet'])
    const server = createServer({ log, metrics, ready })
    server.get('/probe', (request): ProbeAnswer => {
      const [given, wanted] = [bearerToken(request.headers), this.#probeSecret].map((it) => Buffer.from(it))
      if (!given || !wanted || given.length !== wanted.length || !timingSafeEqual(given, wanted))
        throw new ShoalError('Unauthorized', 'not this worker’s probe secret')
      return {
        worker: this.#name,
        lastPollId: this.#poller.lastPollId,
        held: this.#held ? [this.#held] : [],
      }
    })
    return server
  }

  async #work({ job, askedAt }: Claimed, place: BuildPlace, signal: AbortSignal): Promise<void> {
    const { hub, metrics } = this.#options
    const log = this.#options.log.child({ job: `${job.namespace}/${job.name}`, attempt: job.attempt })
    const began = this.#clock.monotonic()
    const stop = new AbortController()
    const cancel = () =>
      stop.abort(new Stopped({ result: 'Failed', code: 'Cancelled', message: 'cancelled while it was built' }))
    const lease = new Lease({ job, hub, clock: this.#clock, log, askedAt, onCancel: cancel })
    lease.signal.addEventListener('abort', () => stop.abort(lease.signal.reason))
    const handBack = this.#handBackAfterGrace(stop, signal)
    const done = new AbortController()
    log.info('job begun')
    let outcome: string
    try {
      lease.check()
      const jobLog = new JobLog({ job, lease, clock: this.#clock, log })
      const kept = lease.keep(done.signal)
      const ended = new AbortController()
      const sent = jobLog.send(ended.signal)
      try {
        const result = await runJob({ job, lease, log: jobLog, place, signal: stop.signal }).finally(() =>
          ended.abort(),
        )
        await sent
        await this.#finish(lease, result, signal)
        outcome = result.result === 'Failed' ? result.code : result.result
      } finally {
        ended.abort()
        done.abort()
        await Promise.allSettled([kept, sent])
      }
    } catch (error) {
      outcome = error instanceof LeaseLost ? 'LeaseLost' : 'NotFinished'
      if (!(error instanceof LeaseLost)) log.error({ err: error }, 'the hub does not take the job’s end')
    } finally {
      done.abort()
      handBack[Symbol.dispose]()
      this.#held = undefined
    }
    const seconds = (this.#clock.monotonic() - began) / 1000
    metrics.counter('worker_jobs_total', 'Jobs by how they ended.', ['outcome']).inc({ outcome })
    metrics.histogram('worker_job_duration_seconds', 'Time from claim to end of a job.').observe(seconds)
    log.info({ outcome, seconds }, 'job ended')
  }

  #handBackAfterGrace(stop: AbortController, signal: AbortSignal): Disposable {
    // A job that came after the signal has no grace.
    const graceMs = signal.aborted ? 0 : (this.#options.graceMs ?? 0)
    const done = new AbortController()
    const begin = () =>
      this.#clock.sleep(graceMs, done.signal).then(
        () => stop.abort(new Stopped({ result: 'HandedBack' })),
        () => undefined,
      )
    if (signal.aborted) begin()
    else signal.addEventListener('abort', begin, { once: true, signal: done.signal })
    return { [Symbol.dispose]: () => done.abort() }
  }

  /** Says how it went, again and again while the lease lasts; after the signal only for a while. */
  async #finish(lease: Lease, outcome: FinishRequest['outcome'], signal: AbortSignal): Promise<void> {
    const began = this.#clock.monotonic()
    for (let attempt = 1; ; attempt++) {
      try {
        return void (await lease.call('finish', { outcome }))
      } catch (error) {
        const isLate = this.#clock.monotonic() - began > (signal.aborted ? farewellMs : finishMs)
        if (error instanceof LeaseLost || error instanceof Stalled || isLate) throw error
        await this.#clock.sleep(Math.min(200 * 2 ** attempt, 5000), lease.signal)
      }
    }
  }
}
