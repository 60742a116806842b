import { createHmac, randomBytes, timingSafeEqual } from 'node:crypto'
import { setTimeout as delay } from 'node:timers/promises'
import { z } from 'zod'
import { ShoalError } from '../../api/errors.ts'
import { commitId } from '../../api/meta.ts'
import type { Pipeline } from '../../api/pipeline.ts'
import { enqueue } from '../../queue/enqueue.ts'
import type { Logger } from '../../runtime/log.ts'
import type { Metrics } from '../../runtime/metrics.ts'
import type { Server } from '../../runtime/server.ts'
import type { Database } from '../../runtime/sql.ts'
import { untouchedSince } from './paths.ts'
import { catchingUp } from './poll.ts'
import { isBuilt, pushed } from './refs.ts'

export interface WebhookOptions {
  database: Database
  /** By `namespace/name`. */
  pipeline: (key: string) => Pipeline | undefined
  readSecret: (namespace: string, name: string) => Promise<Record<string, string> | undefined>
  metrics: Metrics
  log: Logger
  /** A job was queued. */
  onChange?: () => void
}

/** GitHub's push event, as far as it is read. Forgejo, Gitea and GitLab's GitHub mode send the same. */
const push = z.looseObject({
  ref: z.string().min(1).max(512),
  after: z.string(),
  deleted: z.boolean().optional(),
  head_commit: z.looseObject({ id: z.string() }).nullish(),
})

/** How long a secret is good for that can't be read again, and how long reading it may take before that one is taken. */
const secretKeptMs = 3_600_000
const secretPatienceMs = 1000
const databasePatienceMs = 8000
const noCommit = '0'.repeat(40)
const maxBodyBytes = 5 << 20
/** Compared against where there is no secret, so that an unknown pipeline costs the same time. */
const decoy = randomBytes(32).toString('hex')

/** POST /webhooks/<namespace>/<pipeline>: a push, signed by the pipeline's secret (X-Hub-Signature-256). */
export function registerWebhook(server: Server, options: WebhookOptions): void {
  const catchUp = catchingUp(options)
  const secrets = new Map<string, { secret: string | undefined; atMs: number }>()
  const refused = options.metrics.counter('webhook_refused_total', 'Webhooks without a valid signature.')
  server.register(async (scope) => {
    // The signature covers the bytes as they came.
    scope.removeAllContentTypeParsers()
    scope.addContentTypeParser('*', { parseAs: 'buffer' }, (_request, body, done) => done(null, body))
    scope.post<{ Params: { namespace: string; pipeline: string } }>(
      '/webhooks/:namespace/:pipeline',
      { bodyLimit: maxBodyBytes },
      async (request, reply) => {
        const { namespace, pipeline: name } = request.params
        const body = Buffer.isBuffer(request.body) ? request.body : Buffer.alloc(0)
        const pipeline = options.pipeline(`${namespace}/${name}`)
        const secret = await secretOf(pipeline)
        const signed = isSigned(body, request.headers['x-hub-signature-256'], secret || decoy)
        if (!pipeline || !secret || !signed) {
          refused.inc()
          throw new ShoalError('Unauthorized', 'the signature is not valid here')
        }
        const event = request.headers['x-github-event'] ?? 'push'
        return reply
          .code(202)
          .send(event === 'push' ? await patiently(() => accept(pipeline, body)) : { ignored: `event ${event}` })
      },
    )
  })

  async function secretOf(pipeline: Pipeline | undefined): Promise<string | undefined> {
    const ref = pipeline?.spec.source.webhookSecretRef
    if (!pipeline || !ref) return undefined
    const namespace = pipeline.metadata.namespace ?? ''
    const key = `${namespace}/${ref.name}`
    const known = secrets.get(key)
    const lastKnown = known && performance.now() - known.atMs < secretKeptMs ? known.secret : undefined
    const reading = read(namespace, ref.name)
    if (lastKnown === undefined) return reading
    // A push is queued while the API server is away.
    const late = delay(secretPatienceMs, lastKnown, { ref: false })
    return Promise.race([reading.catch(() => lastKnown), late])
  }

  async function read(namespace: string, name: string): Promise<string | undefined> {
    const secret = (await options.readSecret(namespace, name))?.secret
    secrets.set(`${namespace}/${name}`, { secret, atMs: performance.now() })
    return secret
  }

  /** Whoever sends it waits for 10 s, and does not come again: a database that is back by then has it. */
  async function patiently<T>(work: () => Promise<T>): Promise<T> {
    const untilMs = performance.now() + databasePatienceMs
    for (;;) {
      try {
        return await work()
      } catch (error) {
        const away = error instanceof ShoalError && error.code === 'Unavailable'
        if (!away || performance.now() > untilMs) throw error
        await delay(200)
      }
    }
  }

  async function accept(pipeline: Pipeline, body: Buffer): Promise<{ job?: string; ignored?: string }> {
    const { ref, after, deleted, head_commit: head } = push.parse(parseJson(body))
    if (deleted || after === noCommit) return { ignored: `${ref} was deleted` }
    if (!isBuilt(pipeline, ref)) return { ignored: `${ref} is not built by this pipeline` }
    // Of an annotated tag, `after` is the tag object, and a poll would find the commit.
    const commit = commitId.parse(ref.startsWith('refs/tags/') ? (head?.id ?? after) : after)
    await catchUp(pipeline)
    const tip = { commit, ref }
    const since = await untouchedSince(options, pipeline, { tip, signal: AbortSignal.timeout(5000) })
    if (since !== undefined) return { ignored: `nothing under its paths changed since ${since}` }
    const { job } = await enqueue(options.database, pushed(pipeline, tip))
    options.onChange?.()
    return { job: job.name }
  }
}

/** Takes the same time whatever is wrong. */
function isSigned(body: Buffer, header: string | string[] | undefined, secret: string): boolean {
  const wanted = Buffer.from(`sha256=${createHmac('sha256', secret).update(body).digest('hex')}`)
  const given = Buffer.from(typeof header === 'string' ? header : '')
  return given.length === wanted.length && timingSafeEqual(given, wanted)
}

function parseJson(body: Buffer): unknown {
  try {
    return JSON.parse(body.toString())
  } catch (cause) {
    throw new ShoalError('Invalid', 'the body is not JSON', { cause })
  }
}
