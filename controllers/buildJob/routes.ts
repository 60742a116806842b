import { Fenced, ShoalError, Stalled } from '../../api/errors.ts'
import type { Pipeline } from '../../api/pipeline.ts'
import {
  type ClaimAnswer,
  claimRequest,
  finishRequest,
  type JobClaim,
  jobClaim,
  leaveRequest,
  logRequest,
  uploadCompleteRequest,
  uploadPartsRequest,
  uploadStartRequest,
} from '../../api/workerApi.ts'
import { artifactKey } from '../../artifacts/key.ts'
import { choosePartSizeBytes } from '../../artifacts/partSize.ts'
import { receiveUpload } from '../../artifacts/receive.ts'
import type { Broker } from '../../queue/broker.ts'
import type { Claim } from '../../queue/claim.ts'
import { heartbeatMany, recordUpload, requireLease } from '../../queue/lease.ts'
import { appendLog } from '../../queue/log.ts'
import { leave } from '../../queue/workers.ts'
import { Batch } from '../../runtime/batch.ts'
import type { TokenReviewer } from '../../runtime/identity.ts'
import { bearerToken, type Server } from '../../runtime/server.ts'
import type { Database } from '../../runtime/sql.ts'
import type { RegionDirectory } from '../region/directory.ts'

export interface WorkerRoutesOptions {
  database: Database
  tokens: TokenReviewer
  /** The namespace of the workers' ServiceAccount. */
  namespace: string
  /** By `namespace/name`. */
  pipeline: (key: string) => Pipeline | undefined
  regions: RegionDirectory
  readSecret: (namespace: string, name: string) => Promise<Record<string, string> | undefined>
  leaseMs: number
  broker: Broker
  /** How long a worker's question is held while there is no job; at most a third of the lease. */
  claimHoldMs: number
  /** A job's row changed. */
  onChange?: () => void
  /** A job was claimed here, said something or ended: its row's id. */
  onJob?: (id: number) => void
}

type Request = { headers: { authorization?: string | undefined }; body: unknown }

const presignSeconds = 600

/** POST /v1/worker/… (api/workerApi.ts): what workers say to the hub. Any replica answers any of it. */
export function registerWorkerRoutes(server: Server, options: WorkerRoutesOptions): void {
  const { database, broker, regions, leaseMs, onChange, onJob } = options
  // A worker counts its lease from when it asked, and says its first heartbeat after a third.
  const holdMs = Math.min(options.claimHoldMs, leaseMs / 3)
  const worker = `system:serviceaccount:${options.namespace}:shoal-worker`

  async function authorize({ headers }: Request): Promise<void> {
    const { username } = await options.tokens.review(bearerToken(headers))
    if (username !== worker) throw new ShoalError('Forbidden', 'the caller is not a worker')
  }
  const route = (path: string, handle: (body: unknown, signal: AbortSignal) => Promise<unknown>) =>
    server.post(`/v1/worker/${path}`, { bodyLimit: 16 << 20 }, async (request, reply) => {
      await authorize(request)
      const gone = new AbortController()
      reply.raw.once('close', () => !reply.raw.writableFinished && gone.abort())
      return (await handle(request.body, gone.signal)) ?? {}
    })

  route('claim', async (body, signal): Promise<ClaimAnswer> => {
    // Jittered, so that thousands that began together don't come back together.
    const { holdMs: patienceMs = holdMs, ...claimer } = claimRequest.parse(body)
    const waitMs = Math.min(patienceMs, holdMs * (0.8 + 0.2 * Math.random()))
    const taken = await broker.ask(claimer, { waitMs, signal })
    if (!taken) return { pollAfterMs: 0 }
    onChange?.()
    onJob?.(taken.job.id)
    try {
      return await answer(taken)
    } catch (error) {
      // What the pipeline itself makes impossible ends the job; the worker asks for the next one.
      const held = { jobId: taken.job.id, token: taken.token }
      if (!(error instanceof Stalled)) {
        // Such as an API server that is away for a moment: the job is not to blame.
        await broker.finish(held, { result: 'HandedBack' }).catch(() => undefined)
        throw error
      }
      await broker.finish(held, { result: 'Failed', code: error.code, message: error.message })
      onChange?.()
      return { pollAfterMs: 0 }
    }
  })

  async function answer({ job, token }: Claim): Promise<ClaimAnswer> {
    const pipeline = options.pipeline(`${job.namespace}/${job.pipeline}`)
    if (!pipeline) throw new Stalled('NotFound', `there is no Pipeline ${job.pipeline}`)
    const { source, build } = pipeline.spec
    const ref = source.credentialsSecretRef
    const credentials = ref && (await options.readSecret(job.namespace, ref.name))
    return {
      pollAfterMs: 0,
      job: {
        jobId: job.id,
        token,
        namespace: job.namespace,
        name: job.name,
        pipeline: job.pipeline,
        commit: job.commit,
        ref: job.ref,
        attempt: job.attempt,
        source: {
          url: source.url,
          ...(credentials?.username !== undefined && { username: credentials.username }),
          ...(credentials?.password !== undefined && { password: credentials.password }),
        },
        build,
        leaseMs,
        heartbeatMs: Math.floor(leaseMs / 3),
      },
    }
  }

  const heartbeats = new Batch((batch: JobClaim[]) => heartbeatMany(database, batch))
  route('heartbeat', async (body) => {
    const answer = await heartbeats.call(jobClaim.parse(body))
    if (answer instanceof Fenced) throw answer
    return { leaseMs, ...answer }
  })

  route('log', async (body) => {
    const { offset, text, ...job } = logRequest.parse(body)
    await appendLog(database, job, offset, text)
    onJob?.(job.jobId)
  })

  const keyOf = async (job: JobClaim) => {
    const { namespace, name } = await requireLease(database, job)
    return artifactKey(namespace, name, job.token)
  }

  route('upload/start', async (body) => {
    const { sizeBytes, ...job } = uploadStartRequest.parse(body)
    const key = await keyOf(job)
    const store = await regions.homeStore()
    return { uploadId: await store.uploads.start(key), partSizeBytes: choosePartSizeBytes(sizeBytes) }
  })

  route('upload/parts', async (body) => {
    const { uploadId, parts, ...job } = uploadPartsRequest.parse(body)
    const key = await keyOf(job)
    const store = await regions.homeStore()
    const signed = parts.map(async (part) => {
      const { url, headers } = await store.uploads.presignPart({
        key,
        uploadId,
        ...part,
        expiresSeconds: presignSeconds,
      })
      return { number: part.number, url, headers }
    })
    return { parts: await Promise.all(signed) }
  })

  route('upload/complete', async (body, signal) => {
    const { uploadId, parts, digest, sizeBytes, descriptor, ...job } = uploadCompleteRequest.parse(body)
    const key = await keyOf(job)
    const bytes = Buffer.from(descriptor, 'base64')
    const store = await regions.homeStore()
    const facts = await receiveUpload(store, { key, uploadId, parts, digest, sizeBytes, descriptor: bytes, signal })
    await recordUpload(database, job, facts)
  })

  route('finish', async (body) => {
    const { outcome, ...claim } = finishRequest.parse(body)
    await broker.finish(claim, outcome)
    onChange?.()
    onJob?.(claim.jobId)
  })

  route('leave', async (body) => {
    const { worker: name, probeSecret } = leaveRequest.parse(body)
    await leave(database, name, probeSecret)
  })
}
