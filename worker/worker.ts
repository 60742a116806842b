/**
 * worker/: a process that builds one job at a time. It asks the hub for a job, builds it in a workspace and as a user of
 * its own, uploads what the build left, and says how it ended. It keeps nothing and holds no credential but its token;
 * whatever happens to it, its jobs go to others and what it says too late is refused.
 */
import { randomBytes, timingSafeEqual } from 'node:crypto'
import { mkdir, readdir, rm } from 'node:fs/promises'
import { hostname } from 'node:os'
import { join } from 'node:path'
import { Fenced, ShoalError } from '../api/errors.ts'
import { claimAnswer, type ProbeAnswer } from '../api/workerApi.ts'
import type { ApiClient } from '../runtime/apiClient.ts'
import { type Clock, systemClock } from '../runtime/clock.ts'
import type { Logger } from '../runtime/log.ts'
import type { Metrics } from '../runtime/metrics.ts'
import { bearerToken, createServer, listen } from '../runtime/server.ts'
import { chooseBuildUser } from './buildUser.ts'
import { HeldJob } from './held.ts'
import { runJob } from './job.ts'

export interface WorkerOptions {
  hub: ApiClient
  /** Absolute; may be shared by workers. */
  workspace: string
  listen: { host: string; port: number }
  /** Where the hub reaches `listen`. Default: the address it got. */
  probeUrl?: string | undefined
  log: Logger
  metrics: Metrics
  clock?: Clock
}

const hubAwayMs = 2000

/** One worker. Its name is new with each process. */
export class Worker {
  readonly name = `${hostname().slice(0, 100)}-${process.pid}-${randomBytes(4).toString('hex')}`
  readonly #options: WorkerOptions
  readonly #clock: Clock
  readonly #probeSecret = randomBytes(32).toString('hex')
  #held: HeldJob | undefined
  #pollId = 0
  #processedPollId = 0

  constructor(options: WorkerOptions) {
    this.#options = options
    this.#clock = options.clock ?? systemClock
  }

  /** Builds until the signal aborts; a job in work then goes back to the queue. */
  async run(signal: AbortSignal): Promise<void> {
    const { log, metrics, workspace } = this.#options
    const server = createServer({ log, metrics })
    server.get('/probe', (request) => this.#probe(bearerToken(request.headers)))
    const { url } = await listen(server, this.#options.listen)
    const dir = join(workspace, this.name)
    await removeLeftovers(workspace)
    await mkdir(dir, { recursive: true })
    const user = await chooseBuildUser(dir)
    log.info({ worker: this.name, url, buildUid: user.uid ?? 'own' }, 'asking for jobs')
    try {
      while (!signal.aborted) {
        const afterMs = await this.#turn(
          { dir: join(dir, 'job'), user, probeUrl: this.#options.probeUrl ?? url },
          signal,
        )
        await this.#clock.sleep(afterMs * (0.8 + Math.random() * 0.4), signal).catch(() => undefined)
      }
    } finally {
      await rm(dir, { recursive: true, force: true, maxRetries: 5 })
      await server.close()
    }
  }

  /** Asks once and builds what it is given; how soon to ask again. */
  async #turn(
    place: { dir: string; user: { uid: number | undefined }; probeUrl: string },
    signal: AbortSignal,
  ): Promise<number> {
    const { hub, log, metrics } = this.#options
    const { dir, user, probeUrl } = place
    const pollId = ++this.#pollId
    const askedAt = this.#clock.monotonic()
    try {
      const body = { worker: this.name, pollId, probeUrl, probeSecret: this.#probeSecret }
      const { job, pollAfterMs } = await hub.request('POST', '/v1/worker/claim', { body, schema: claimAnswer, signal })
      // Held before the poll counts as processed: a probe in between must not find the job missing.
      this.#held = job && new HeldJob(job, { hub, clock: this.#clock, askedAt })
      this.#processedPollId = pollId
      if (!this.#held || !job) return pollAfterMs
      log.info({ jobId: job.jobId, job: job.name, attempt: job.attempt }, 'building')
      const outcome = await this.#build(this.#held, { dir, user }, signal)
      metrics.counter('builds_total', 'Jobs this worker ended, by how.', ['outcome']).inc({ outcome })
      log.info({ jobId: job.jobId, job: job.name, outcome }, 'job ended')
      return 0
    } catch (error) {
      if (signal.aborted) return 0
      log.info({ err: error }, 'asking for a job failed')
      return hubAwayMs
    } finally {
      this.#held = undefined
    }
  }

  async #build(
    held: HeldJob,
    place: { dir: string; user: { uid: number | undefined } },
    signal: AbortSignal,
  ): Promise<string> {
    const { log } = this.#options
    const stopping = () => held.drop(new ShoalError('Unavailable', 'the worker is shutting down'))
    signal.addEventListener('abort', stopping, { once: true })
    if (signal.aborted) stopping()
    try {
      return await runJob(held, { ...place, log, clock: this.#clock, handBack: () => signal.aborted })
    } catch (error) {
      if (!(error instanceof Fenced)) throw error
      log.info({ jobId: held.job.jobId, reason: error.message }, 'job dropped')
      return 'dropped'
    } finally {
      signal.removeEventListener('abort', stopping)
    }
  }

  #probe(secret: string): ProbeAnswer {
    const [wanted, given] = [Buffer.from(this.#probeSecret), Buffer.from(secret)]
    if (given.length !== wanted.length || !timingSafeEqual(given, wanted))
      throw new ShoalError('Unauthorized', 'the probe’s token is not valid here')
    const held = this.#held && { jobId: this.#held.job.jobId, token: this.#held.job.token }
    return { worker: this.name, lastPollId: this.#processedPollId, held: held ? [held] : [] }
  }
}

/** Workspaces of workers that are no more. */
async function removeLeftovers(workspace: string): Promise<void> {
  for (const name of await readdir(workspace).catch(() => [])) {
    const pid = Number(/-(\d+)-[0-9a-f]{8}$/.exec(name)?.[1])
    if (!pid || !name.startsWith(hostname().slice(0, 100)) || isAlive(pid)) continue
    await rm(join(workspace, name), { recursive: true, force: true, maxRetries: 5 })
  }
}

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0)
    return true
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'EPERM'
  }
}
