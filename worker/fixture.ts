/** For tests: a hub of worker routes over the real queue and a real store, workers as processes, and git repositories. */
import { readdirSync, readFileSync } from 'node:fs'
import { chmod, mkdir, rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import type { z } from 'zod'
import { Fenced, Stalled } from '../api/errors.ts'
import { build } from '../api/pipeline.ts'
import {
  type ClaimAnswer,
  claimRequest,
  finishRequest,
  type JobClaim,
  jobClaim,
  logRequest,
  uploadCompleteRequest,
  uploadPartsRequest,
  uploadStartRequest,
} from '../api/workerApi.ts'
import { artifactKey } from '../artifacts/key.ts'
import { choosePartSizeBytes } from '../artifacts/partSize.ts'
import { receiveUpload } from '../artifacts/receive.ts'
import { Store } from '../artifacts/store.ts'
import { startDatabase } from '../hack/parts/database.ts'
import { type Program, startProgram, temporaryDir, until } from '../hack/parts/process.ts'
import { startStore } from '../hack/parts/store.ts'
import { commit, makeRepository, push, type Repository } from '../hack/story/repositories.ts'
import { claim } from '../queue/claim.ts'
import { findJob } from '../queue/control.ts'
import { enqueue } from '../queue/enqueue.ts'
import { finish } from '../queue/finish.ts'
import type { Job } from '../queue/job.ts'
import { heartbeat, recordUpload, requireLease } from '../queue/lease.ts'
import { appendLog, leftOut, logParts } from '../queue/log.ts'
import { createLogger } from '../runtime/log.ts'
import { Metrics } from '../runtime/metrics.ts'
import { bearerToken, createServer, listen } from '../runtime/server.ts'
import { Database } from '../runtime/sql.ts'

const root = join(import.meta.dirname, '..')
const token = 'worker-token'

type Build = z.input<typeof build>
type Source = { url?: string; username?: string; password?: string }

function countDown(times: Map<string, number>, path: string): boolean {
  const left = times.get(path) ?? 0
  times.set(path, Math.max(0, left - 1))
  return left > 0
}

/** How many processes have the text in their command line. */
export function running(text: string): number {
  const commands = readdirSync('/proc').map((pid) => {
    try {
      return /^\d+$/.test(pid) ? readFileSync(`/proc/${pid}/cmdline`, 'utf8').replaceAll('\0', ' ') : ''
    } catch {
      return ''
    }
  })
  return commands.filter((command) => command.includes(text)).length
}

export class Fixture implements AsyncDisposable {
  readonly database: Database
  readonly store: Store
  readonly dir: string
  readonly repository: Repository
  /** What workers asked: path and body, in order. */
  readonly asked: { path: string; body: { jobId?: number } & Record<string, unknown> }[] = []
  /** Paths of calls that fail as if the hub were away, and how often. */
  readonly away = new Map<string, number>()
  /** The same, after they were carried out. */
  readonly unanswered = new Map<string, number>()
  leaseMs = 30_000
  heartbeatMs = 200
  readonly #builds = new Map<string, { build: Build; source: Source }>()
  readonly #parts: AsyncDisposableStack
  #hubUrl = ''
  #count = 0

  private constructor(
    parts: AsyncDisposableStack,
    given: { database: Database; store: Store; dir: string; repository: Repository },
  ) {
    this.#parts = parts
    this.database = given.database
    this.store = given.store
    this.dir = given.dir
    this.repository = given.repository
  }

  static async start(): Promise<Fixture> {
    await using stack = new AsyncDisposableStack()
    const [server, storeServer, temporary] = await Promise.all([
      startDatabase(),
      startStore(),
      temporaryDir('shoal-worker'),
    ])
    for (const part of [server, storeServer, temporary]) stack.use(part)
    await chmod(temporary.path, 0o711)
    await storeServer.createBucket('blobs')
    const database = stack.use(new Database(await server.createSchema('builds')))
    await database.migrate(join(root, 'queue/migrations'))
    const store = stack.use(new Store({ ...storeServer, bucket: 'blobs' }))
    const repository = await makeRepository(temporary.path, 'source')
    await writeFile(join(temporary.path, 'token'), token, { mode: 0o600 })
    const fixture = new Fixture(stack.move(), { database, store, dir: temporary.path, repository })
    await fixture.#serve()
    return fixture
  }

  async #serve(): Promise<void> {
    const log = createLogger('test', 'silent')
    const server = createServer({ log, metrics: new Metrics(), bodyLimitBytes: 16 << 20 })
    server.post('/v1/worker/*', async (request) => {
      const path = (request.params as { '*': string })['*']
      const body = request.body as { jobId?: number } & Record<string, unknown>
      if (bearerToken(request.headers) !== token) throw new Stalled('Forbidden', 'not a worker')
      this.asked.push({ path, body })
      if (countDown(this.away, path)) throw new Error('away')
      const answer = (await this.#answer(path, body)) ?? {}
      if (countDown(this.unanswered, path)) throw new Error('lost')
      return answer
    })
    this.#hubUrl = (await listen(server, { host: '127.0.0.1', port: 0 })).url
    this.#parts.defer(() => server.close())
  }

  async #answer(path: string, body: unknown): Promise<unknown> {
    const { database, leaseMs, store } = this
    switch (path) {
      case 'claim':
        return this.#claim(body)
      case 'heartbeat':
        return { leaseMs, ...(await heartbeat(database, jobClaim.parse(body))) }
      case 'log': {
        const { offset, text, ...job } = logRequest.parse(body)
        return appendLog(database, job, offset, text)
      }
      case 'upload/start': {
        const { sizeBytes, ...job } = uploadStartRequest.parse(body)
        return {
          uploadId: await store.uploads.start(await this.#key(job)),
          partSizeBytes: choosePartSizeBytes(sizeBytes),
        }
      }
      case 'upload/parts': {
        const { uploadId, parts, ...job } = uploadPartsRequest.parse(body)
        const key = await this.#key(job)
        const sign = async (part: (typeof parts)[number]) => ({
          number: part.number,
          ...(await store.uploads.presignPart({ key, uploadId, ...part })),
        })
        return { parts: await Promise.all(parts.map(sign)) }
      }
      case 'upload/complete': {
        const { jobId, token, descriptor, ...upload } = uploadCompleteRequest.parse(body)
        const key = await this.#key({ jobId, token })
        const facts = await receiveUpload(store, { key, ...upload, descriptor: Buffer.from(descriptor, 'base64') })
        return recordUpload(database, { jobId, token }, facts)
      }
      case 'finish': {
        const { outcome, ...job } = finishRequest.parse(body)
        return finish(database, job, outcome)
      }
      default:
        throw new Stalled('NotFound', path)
    }
  }

  async #claim(body: unknown): Promise<ClaimAnswer> {
    const taken = await claim(this.database, claimRequest.parse(body))
    if (!taken) return { pollAfterMs: 50 }
    const { job, token } = taken
    const pipeline = this.#builds.get(job.name)
    if (!pipeline) throw new Fenced('a job of an earlier test')
    const { id: jobId, namespace, name, ref, attempt } = job
    return {
      pollAfterMs: 0,
      job: {
        ...{ jobId, token, namespace, name, pipeline: job.pipeline, commit: job.commit, ref, attempt },
        source: { url: this.repository.bare, ...pipeline.source },
        build: build.parse(pipeline.build),
        leaseMs: this.leaseMs,
        heartbeatMs: this.heartbeatMs,
      },
    }
  }

  async #key(job: JobClaim): Promise<string> {
    const { namespace, name } = await requireLease(this.database, job)
    return artifactKey(namespace, name, job.token)
  }

  /** Commits a build script and queues the commit; default output `out`. Returns the job's name and the commit. */
  async queue(
    script: string,
    more: Partial<Build> & { source?: Source; commit?: string; pipeline?: string } = {},
  ): Promise<{ name: string; commit: string }> {
    const file = join(this.repository.work, 'build.sh')
    await writeFile(file, `#!/bin/sh\nset -eu\n# ${++this.#count}\n${script}\n`)
    await chmod(file, 0o755)
    const { source = {}, commit: wanted, pipeline = 'web', ...rest } = more
    const made = await commit(this.repository, 'a commit')
    await push(this.repository)
    const name = `job-${this.#count}`
    this.#builds.set(name, { build: { command: ['./build.sh'], output: 'out', ...rest }, source })
    await enqueue(this.database, {
      ...{ namespace: 'demo', pipeline, name, commit: wanted ?? made, ref: 'refs/heads/main', maxJobs: 100 },
    })
    return { name, commit: wanted ?? made }
  }

  async job(name: string): Promise<Job> {
    const job = await findJob(this.database, 'demo', name)
    if (!job) throw new Error(`no job ${name}`)
    return job
  }

  /** What has come of the last attempt's log. */
  async log(name: string): Promise<string> {
    const { id: jobId, claims: attempt } = await this.job(name)
    let [text, offset] = ['', 0]
    for (;;) {
      const parts = await logParts(this.database, { jobId, attempt, offset })
      if (parts.length === 0) return text
      for (const part of parts) {
        text += `${part.offset > offset ? leftOut(part.offset - offset) : ''}${part.text}`
        offset = part.offset + part.text.length
      }
    }
  }

  /** The job, once it is in one of the phases. */
  async reaches(name: string, phases: Job['phase'][], timeoutMs = 60_000): Promise<Job> {
    await until(
      `${name} is ${phases.join(' or ')}`,
      async () => {
        const { phase, code, message } = await this.job(name)
        if (phases.includes(phase)) return true
        throw new Error(`${phase} ${code} ${message}`)
      },
      { timeoutMs },
    )
    return this.job(name)
  }

  /** A worker as a process of its own; `as`: a command that runs it. Disposing kills it. */
  startWorker(name: string, settings: Record<string, string> = {}, as: string[] = []): Program {
    const [command = '', ...args] = [...as, process.execPath, join(root, 'main.ts'), 'worker']
    return startProgram(command, args, {
      name,
      logFile: join(this.dir, `${name}.log`),
      cwd: this.dir,
      env: {
        PATH: process.env.PATH,
        OUR_OWN: 'not for builds',
        SHOAL_HUB_URL: this.#hubUrl,
        SHOAL_TOKEN_FILE: join(this.dir, 'token'),
        SHOAL_WORKSPACE: join(this.dir, 'work'),
        ...settings,
      },
    })
  }

  /** A folder that builds may write to. */
  async shared(name: string): Promise<string> {
    const path = join(this.dir, name)
    await rm(path, { recursive: true, force: true })
    await mkdir(path)
    await chmod(path, 0o777)
    return path
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#parts.disposeAsync()
  }
}
