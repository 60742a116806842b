import { Readable } from 'node:stream'
import { z } from 'zod'
import { BuildJob } from '../../api/buildJob.ts'
import { ShoalError, Transient, Waiting } from '../../api/errors.ts'
import type { LogEvent } from '../../api/jobApi.ts'
import { findJob } from '../../queue/control.ts'
import { type Access, authorize } from '../../runtime/access.ts'
import type { Server } from '../../runtime/server.ts'
import { type LogStreamSources, logEvents } from './logStream.ts'

export interface LogRouteOptions extends Access, LogStreamSources {
  /** Readers at once. Default: 1,000; each has about 1 MB in memory at most. */
  maxReaders?: number
  /** A reader asks again after so long, and is authorized anew. Default: 15 min. */
  longestMs?: number
  /** A reader that takes nothing for so long is cut off. Default: 60 s. */
  stalledMs?: number
}

const query = z.object({
  attempt: z.coerce.number().int().min(1).optional(),
  offset: z.coerce.number().int().min(0).optional(),
  follow: z.stringbool().default(false),
})

const busyMs = 5000
const bufferBytes = 64 << 10
const ndjson = 'application/x-ndjson'

/**
 * GET /v1/jobs/<namespace>/<name>/log?attempt=&offset=&follow=: a build's log, for whoever may get the BuildJob, from any
 * replica: as text, or as events (api/jobApi.ts) for who accepts them. It comes as fast as it is taken.
 */
export function registerLogRoute(server: Server, options: LogRouteOptions): void {
  const { cluster, database, maxReaders = 1000, longestMs = 900_000, stalledMs = 60_000 } = options
  const closing = new AbortController()
  server.addHook('preClose', async () => closing.abort())
  let readers = 0

  async function requireJob(namespace: string, name: string, wanted: z.infer<typeof query>): Promise<void> {
    const job = await findJob(database, namespace, name)
    const attempts = job?.claims ?? 0
    if (!job && !(wanted.follow && (await cluster.get(BuildJob, namespace, name))))
      throw new ShoalError('NotFound', `there is no job ${name} in namespace ${namespace}`)
    if ((wanted.attempt ?? 0) > attempts)
      throw new ShoalError('NotFound', `job ${name} has no attempt ${wanted.attempt}, its last one is ${attempts}`)
  }

  server.get<{ Params: { namespace: string; name: string } }>(
    '/v1/jobs/:namespace/:name/log',
    async (request, reply) => {
      const { namespace, name } = request.params
      const gone = new AbortController()
      reply.raw.once('close', () => gone.abort())
      await authorize(options, request, { verb: 'get', resource: BuildJob.plural, namespace, name })
      const wanted = query.parse(request.query)
      await requireJob(namespace, name, wanted)
      if (readers >= maxReaders)
        throw new Waiting('Unavailable', `${readers} readers of logs are here already`, { afterMs: busyMs })
      if (gone.signal.aborted) throw new Transient('Unavailable', 'the reader is gone')
      readers++
      gone.signal.addEventListener('abort', () => readers--, { once: true })
      // No activity is no harm while there is nothing to be taken.
      reply.raw.on('timeout', () => {
        if (reply.raw.writableLength > 0) reply.raw.destroy()
        else reply.raw.setTimeout(stalledMs)
      })
      reply.raw.setTimeout(stalledMs)
      const signal = AbortSignal.any([gone.signal, closing.signal, AbortSignal.timeout(longestMs)])
      const events = logEvents(options, { namespace, name, ...wanted, signal })
      const asEvents = request.headers.accept?.includes(ndjson)
      const encoded = asEvents ? toLines(events, signal) : toText(events, signal)
      return reply
        .type(asEvents ? ndjson : 'text/plain; charset=utf-8')
        .send(Readable.from(encoded, { objectMode: false, highWaterMark: bufferBytes }))
    },
  )
}

/** What is interrupted just ends: without a last state the reader knows, and comes back. */
async function* toLines(events: AsyncIterable<LogEvent>, signal: AbortSignal): AsyncGenerator<Buffer> {
  try {
    for await (const event of events) yield Buffer.from(`${JSON.stringify(event)}\n`)
  } catch (error) {
    if (!signal.aborted) throw error
  }
}

/** What is interrupted breaks off, or it would look whole. */
async function* toText(events: AsyncIterable<LogEvent>, signal: AbortSignal): AsyncGenerator<Buffer> {
  for await (const event of events) if (event.type === 'log') yield Buffer.from(event.text)
  signal.throwIfAborted()
}
