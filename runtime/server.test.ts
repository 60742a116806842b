import { once } from 'node:events'
import { utimes, writeFile } from 'node:fs/promises'
import { createServer as createTcpServer } from 'node:net'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { connect } from 'node:tls'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { z } from 'zod'
import { Fenced, ShoalError, Stalled, Transient, Waiting } from '../api/errors.ts'
import { freePort, temporaryDir, until } from '../hack/parts/process.ts'
import { ApiClient } from './apiClient.ts'
import { createAuthority, createServerCertificate } from './certificates.ts'
import { createLogger } from './log.ts'
import { Metrics } from './metrics.ts'
import { bearerToken, createServer, listen } from './server.ts'

const test = suite('server and client')
const log = createLogger('test', 'silent')
const local = { host: '127.0.0.1', port: 0 }

const thrown = (work: Promise<unknown>): Promise<ShoalError> =>
  work.then(
    () => assert.unreachable('it did not throw'),
    (error) => error,
  ) as Promise<ShoalError>

async function start(ready?: () => string[]) {
  const server = createServer({ log, metrics: new Metrics(), bodyLimitBytes: 1000, ...(ready && { ready }) })
  const throws: Record<string, () => unknown> = {
    fenced: () => new Fenced('not yours any more'),
    stalled: () => new Stalled('Invalid', 'wrong'),
    waiting: () => new Waiting('WaitingForArtifact', 'not yet', { afterMs: 1500 }),
    transient: () => new Transient('StoreUnreachable', 'away'),
    forbidden: () => new ShoalError('Forbidden', 'no'),
    unauthorized: () => bearerToken({}),
    bug: () => new Error('password=hunter2'),
    zod: () => z.object({ commit: z.string() }).parse({}),
  }
  server.post<{ Params: { what: string } }>('/throw/:what', (request) => {
    throw throws[request.params.what]?.()
  })
  server.post('/echo', (request) => ({ body: request.body, authorization: request.headers.authorization }))
  const { url } = await listen(server, local)
  const client = new ApiClient({ baseUrl: url, token: () => 'secret' })
  return {
    server,
    client,
    url,
    async [Symbol.asyncDispose]() {
      await client[Symbol.asyncDispose]()
      await server.close()
    },
  }
}

test('an error arrives as the class and code it was thrown as', async () => {
  await using at = await start()
  const of = async (what: string) => {
    const { name, code, message } = await thrown(at.client.request('POST', `/throw/${what}`))
    return [name, code, message]
  }
  assert.equal(await of('fenced'), ['Fenced', 'Fenced', 'not yours any more'])
  assert.equal(await of('stalled'), ['Stalled', 'Invalid', 'wrong'])
  assert.equal(await of('transient'), ['Transient', 'StoreUnreachable', 'away'])
  assert.equal(await of('forbidden'), ['Stalled', 'Forbidden', 'no'])
  assert.equal((await of('unauthorized')).slice(0, 2), ['Transient', 'Unauthorized'])
  assert.equal((await of('zod')).slice(0, 2), ['Stalled', 'Invalid'])
  const waiting = await thrown(at.client.request('POST', '/throw/waiting'))
  assert.ok(waiting instanceof Waiting && waiting.afterMs === 2000 && waiting.code === 'WaitingForArtifact')
})

test('what we did not expect is answered without details', async () => {
  await using at = await start()
  const answer = await fetch(`${at.url}/throw/bug`, { method: 'POST' })
  assert.is(answer.status, 500)
  assert.equal(await answer.json(), { code: 'Internal', message: 'internal error' })
})

test('statuses follow the codes; a body over the limit, one that is no JSON and an unknown path are refused', async () => {
  await using at = await start()
  const status = async (path: string, body?: string) =>
    (
      await fetch(at.url + path, {
        method: 'POST',
        ...(body && { body, headers: { 'content-type': 'application/json' } }),
      })
    ).status
  assert.equal(
    await Promise.all(
      ['fenced', 'stalled', 'waiting', 'transient', 'forbidden', 'unauthorized'].map((what) =>
        status(`/throw/${what}`),
      ),
    ),
    [409, 422, 503, 503, 403, 401],
  )
  assert.is(await status('/echo', JSON.stringify('x'.repeat(2000))), 413)
  assert.is(await status('/echo', '{'), 422)
  assert.is(await status('/nothing', '{}'), 404)
  assert.is((await thrown(at.client.request('POST', '/echo', { body: 'x'.repeat(2000) }))).code, 'TooLarge')
})

test('the client sends its token and parses the answer; an answer that does not fit is not the caller’s fault', async () => {
  await using at = await start()
  const schema = z.object({ body: z.object({ a: z.number() }), authorization: z.string() })
  const answer = await at.client.request('POST', '/echo', { body: { a: 1 }, schema })
  assert.equal(answer, { body: { a: 1 }, authorization: 'Bearer secret' })
  const error = await thrown(at.client.request('POST', '/echo', { body: { a: 'x' }, schema }))
  assert.ok(error instanceof Transient && error.code === 'Unavailable')
})

test('a server that is not there or does not answer is transient, and an abort is the caller’s own', async () => {
  const silent = createTcpServer(() => undefined)
  silent.listen(0, '127.0.0.1')
  await once(silent, 'listening')
  const { port } = silent.address() as { port: number }
  await using gone = new ApiClient({ baseUrl: `http://127.0.0.1:${await freePort()}` })
  const refused = await thrown(gone.request('GET', '/'))
  assert.ok(refused instanceof Transient && refused.code === 'Unavailable')
  await using client = new ApiClient({ baseUrl: `http://127.0.0.1:${port}`, timeoutMs: 100 })
  const late = await thrown(client.request('GET', '/'))
  assert.ok(late instanceof Transient && late.code === 'Timeout')
  const reason = new Error('stop')
  assert.is(await thrown(client.request('GET', '/', { signal: AbortSignal.abort(reason) })), reason)
  await client[Symbol.asyncDispose]()
  silent.close()
})

test('health, readiness with its reasons, and metrics by route', async () => {
  let reasons = ['database not reached']
  await using at = await start(() => {
    if (reasons[0] === 'throw') throw new Error('secret')
    return reasons
  })
  const get = async (path: string) => {
    const answer = await fetch(at.url + path)
    return [answer.status, await answer.text()]
  }
  assert.equal(await get('/healthz'), [200, 'ok\n'])
  assert.equal(await get('/readyz'), [503, 'database not reached\n'])
  reasons = ['throw']
  assert.equal(await get('/readyz'), [503, 'readiness not known\n'])
  reasons = []
  assert.equal(await get('/readyz'), [200, 'ok\n'])
  await fetch(`${at.url}/throw/fenced`, { method: 'POST' })
  const [, text] = await get('/metrics')
  assert.match(String(text), 'shoal_http_request_duration_seconds_count{route="/throw/:what",status="409"} 1')
  assert.match(String(text), 'process_resident_memory_bytes')
})

test('closing answers what is in flight, ends idle connections, and takes no longer than it may', async () => {
  const server = createServer({ log, metrics: new Metrics(), closeMs: 300 })
  const arrived = Promise.withResolvers<void>()
  const finish = Promise.withResolvers<void>()
  server.get('/slow', async () => {
    arrived.resolve()
    await finish.promise
    return 'done'
  })
  const stuck = Promise.withResolvers<void>()
  server.get('/stuck', async () => {
    stuck.resolve()
    await delay(60_000, undefined, { ref: false })
  })
  const { url } = await listen(server, local)
  await (await fetch(`${url}/healthz`)).text()
  const slow = fetch(`${url}/slow`).then((answer) => answer.text())
  const lost = fetch(`${url}/stuck`).catch((error: unknown) => error)
  await Promise.all([arrived.promise, stuck.promise])
  const from = performance.now()
  const closed = server.close()
  finish.resolve()
  assert.is(await slow, 'done')
  await closed
  assert.ok((await lost) instanceof Error)
  const tookMs = performance.now() - from
  assert.ok(tookMs >= 250 && tookMs < 5000, `took ${tookMs} ms`)
})

test('only the given authority is trusted, and a certificate that changes on disk is used without a restart', async () => {
  await using dir = await temporaryDir('shoal-server')
  const [authority, other] = await Promise.all([createAuthority('test'), createAuthority('other')])
  const tls = { certFile: join(dir.path, 'tls.crt'), keyFile: join(dir.path, 'tls.key'), checkMs: 20 }
  const put = async (age: number) => {
    const { certificate, key } = await createServerCertificate(authority, ['localhost', '127.0.0.1'])
    await writeFile(tls.keyFile, key)
    await writeFile(tls.certFile, certificate)
    const at = new Date(Date.now() - age)
    await utimes(tls.certFile, at, at)
  }
  await put(60_000)
  const server = createServer({ log, metrics: new Metrics(), tls })
  const { url, port } = await listen(server, local)
  const serial = async () => {
    const socket = connect({ host: '127.0.0.1', port, ca: authority.certificate })
    await once(socket, 'secureConnect')
    const { serialNumber } = socket.getPeerCertificate()
    socket.destroy()
    return serialNumber
  }
  try {
    await using client = new ApiClient({ baseUrl: url, ca: authority.certificate })
    assert.is((await client.bytes('GET', '/healthz')).toString(), 'ok\n')
    await using stranger = new ApiClient({ baseUrl: url, ca: other.certificate })
    assert.is((await thrown(stranger.bytes('GET', '/healthz'))).code, 'Unavailable')
    const first = await serial()
    await put(0)
    await until('the new certificate is used', async () => (await serial()) !== first)
    await writeFile(tls.certFile, 'not a certificate')
    await delay(60)
    assert.is((await client.bytes('GET', '/healthz')).toString(), 'ok\n')
  } finally {
    await server.close()
  }
})

test.run()
