import { spawn } from 'node:child_process'
import { EventEmitter, once } from 'node:events'
import { readFile, writeFile } from 'node:fs/promises'
import { connect } from 'node:net'
import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import type { ShoalError } from '../../api/errors.ts'
import { startApiServer } from '../../hack/parts/apiServer.ts'
import { freePort, until } from '../../hack/parts/process.ts'
import { claim } from '../../queue/claim.ts'
import { markSucceeded } from '../../queue/control.ts'
import { finish } from '../../queue/finish.ts'
import { leases, requeueLost } from '../../queue/lease.ts'
import { appendLog } from '../../queue/log.ts'
import { ApiClient } from '../../runtime/apiClient.ts'
import { systemClock as clock } from '../../runtime/clock.ts'
import { Cluster } from '../../runtime/cluster.ts'
import { TokenReviewer } from '../../runtime/identity.ts'
import { createLogger } from '../../runtime/log.ts'
import { Metrics } from '../../runtime/metrics.ts'
import { createServer, listen } from '../../runtime/server.ts'
import type { Database } from '../../runtime/sql.ts'
import { Fixture } from '../../worker/fixture.ts'
import { moveLog } from './logObject.ts'
import { type LogRouteOptions, registerLogRoute } from './logRoute.ts'

const test = suite('the log of a build')
const parts = new AsyncDisposableStack()
const [api, fixture] = await Promise.all([startApiServer(), Fixture.start()])
for (const part of [api, fixture]) parts.use(part)
const { database, store } = fixture
const cluster = parts.use(Cluster.load({ kubeconfig: api.kubeconfigFile }))
const tokens = new TokenReviewer(cluster, undefined)
const never = new AbortController().signal
const nobody = await api.serviceAccountToken(`log-${process.pid}`, 'nobody')
test.after(() => parts.disposeAsync())

/** A replica of the hub, as far as it shows logs. */
async function replica(more: Partial<LogRouteOptions> = {}, at?: number) {
  const jobs = new EventEmitter()
  const server = createServer({ log: createLogger('test', 'silent'), metrics: new Metrics(), closeMs: 5000 })
  registerLogRoute(server, { cluster, tokens, database, homeStore: async () => store, jobs, clock, ...more })
  const port = at ?? (await freePort())
  const { url } = await listen(server, { host: '127.0.0.1', port })
  return {
    ...{ url, jobs, port, server },
    close: () => server.close(),
    /** As when its process is killed. */
    async kill() {
      const closed = server.close()
      server.server.closeAllConnections()
      await closed
    },
  }
}
const hub = await replica()
parts.defer(() => hub.close())

/** The command as a process, while it runs and when it has ended. */
function shoal(args: string[], url = hub.url) {
  const child = spawn(process.execPath, [join(import.meta.dirname, '../../main.ts'), ...args], {
    env: { PATH: process.env.PATH, KUBECONFIG: api.kubeconfigFile, SHOAL_HUB_URL: url },
    stdio: ['ignore', 'pipe', 'pipe'],
  })
  parts.defer(() => void child.kill('SIGKILL'))
  const said = { out: '', err: '', code: undefined as number | null | undefined }
  child.stdout.setEncoding('utf8').on('data', (text) => (said.out += text))
  child.stderr.setEncoding('utf8').on('data', (text) => (said.err += text))
  const ended = once(child, 'close').then(([code]) => {
    said.code = code
    return said
  })
  return { said, ended, child }
}
const logs = (...args: string[]) => shoal(['logs', '-n', 'demo', ...args])
const says = (what: string, done: () => unknown) => until(what, done, { timeoutMs: 60_000 })
const get = (name: string, query = '', token = api.token, url = hub.url) => {
  const client = new ApiClient({ baseUrl: url, token: () => token })
  return client.bytes('GET', `/v1/jobs/demo/${name}/log${query}`).then(
    (bytes) => bytes.toString(),
    (error: ShoalError) => error.code,
  )
}
async function tokenOf(jobId: number) {
  return (await leases(database)).find((lease) => lease.jobId === jobId)?.token ?? ''
}
/** A job that this test claims. */
let polls = 0
async function take() {
  const { name } = await fixture.queue('true')
  const claimer = { worker: 't', pollId: ++polls, probeUrl: 'http://127.0.0.1:1', probeSecret: 's'.repeat(32) }
  const taken = await claim(database, claimer)
  assert.is(taken?.job.name, name)
  return { name, claim: { jobId: taken?.job.id ?? 0, token: taken?.token ?? '' } }
}
const fail = (job: Awaited<ReturnType<typeof take>>) =>
  finish(database, job.claim, { result: 'Failed', code: 'BuildFailed', message: 'exit code 2\nlast line' })

test('a follower waits in the queue, sees what is printed as it comes, masked, and learns how it ended', async () => {
  const go = join(await fixture.shared('go'), 'file')
  const env = [{ name: 'API_TOKEN', value: 'tok-1234567' }]
  const script = `printf 'key=tok-1'; sleep 2.5; echo 234567; until [ -e ${go} ]; do sleep 0.1; done
    echo end; mkdir out; echo 1 >out/a`
  const { name } = await fixture.queue(script, { env })
  const follower = logs('-f', name)
  await says('it is told that it waits', () => follower.said.err.includes(`${name} waits for a worker, position 1\n`))
  await using worker = fixture.startWorker('follow')
  await says('it sees the line whose secret was cut', () => follower.said.out.includes('\nkey=***\n'))
  assert.is((await fixture.job(name)).phase, 'Running')
  assert.is(follower.said.code, undefined)
  await writeFile(go, '')
  const { id } = await fixture.reaches(name, ['Replicating'], 60_000)
  await says('it is told of the copies', () => follower.said.err.includes(`${name} is built, and copied`))
  await markSucceeded(database, id)
  const { out, err, code } = await follower.ended
  assert.is(code, 0)
  assert.match(err, `${name} succeeded\n`)
  assert.match(out, /^\[shoal\] attempt 1: fetching .*\n.*\nkey=\*\*\*\nend\n\[shoal\] built/)
  assert.not.match(out, 'tok-1')
  assert.is(out, await get(name))
  const rows = await database.query<{ n: number }>("SELECT COUNT(*) AS n FROM job_log WHERE text LIKE '%tok-1%'")
  assert.is(rows[0]?.n, 0)
  await worker.stop()
})

test('a worker that is killed takes at most the last second along, and the follower goes on with the next', async () => {
  const shared = await fixture.shared('killed')
  const tick = `now=$(date +%s%3N); echo tick $now; echo $now >${shared}/last; sleep 0.1`
  const script = `[ -e ${shared}/last ] || while true; do ${tick}; done; echo again; mkdir out; echo 1 >out/a`
  const { name } = await fixture.queue(script)
  const follower = logs('-f', name)
  const first = fixture.startWorker('first')
  const ticks = () => [...follower.said.out.matchAll(/^tick (\d+)$/gm)].map(([, time]) => Number(time))
  await says('it ticks', () => ticks().length > 25)
  await first.kill()
  const { id } = await fixture.job(name)
  const lastMs = Number(await readFile(join(shared, 'last'), 'utf8'))
  await requeueLost(database, { jobId: id, token: await tokenOf(id) })
  const told = `the worker of attempt 1 was lost or stopped; ${name} waits for a worker, position 1\n`
  await says('it is told of the loss', () => follower.said.err.includes(told))
  const lostMs = lastMs - (ticks().at(-1) ?? 0)
  if (process.env.SHOAL_TEST_LOG) console.log(`lost with the worker: ${lostMs} ms`)
  // A second, and what it takes to post and to store the rest; ticks are 0.1 s apart.
  assert.ok(lostMs <= 1400, `${lostMs} ms of output were lost`)

  await using second = fixture.startWorker('second')
  await fixture.reaches(name, ['Replicating'], 60_000)
  await markSucceeded(database, id)
  const { out, code } = await follower.ended
  assert.is(code, 0)
  const [before = '', after = ''] = out.split('[shoal] the worker of attempt 1 was lost or stopped; attempt 2 begins\n')
  assert.match(after, /^\[shoal\] attempt 2: fetching .*\n.*\nagain\n/)
  const both = [await get(name, '?attempt=1'), await get(name, '?attempt=2')]
  assert.equal([before, after], both)
  assert.is(await moveLog({ database, store, signal: never }, await fixture.job(name)), true)
  assert.is((await logs(name, '--attempt', '1').ended).out, before)
  const again = await logs(name, '-f', '--attempt', '1').ended
  assert.equal([again.out, again.code], [out, 0])
  const missing = await logs(name, '--attempt', '3').ended
  assert.match(missing.err, `job ${name} has no attempt 3, its last one is 2`)
  await second.stop()
})

test('a follower whose hub dies goes on at another, and misses and repeats nothing', async () => {
  const port = await freePort()
  let other = await replica({}, port)
  const job = await take()
  const follower = shoal(['logs', '-n', 'demo', '-f', job.name], other.url)
  let [text, offset] = ['', 0]
  const print = async (line: string) => {
    await appendLog(database, job.claim, offset, line)
    text += line
    offset += Buffer.byteLength(line)
  }
  for (let n = 0; n < 3; n++) {
    await print(`before ${n} é\n`)
    await says('it has come', () => follower.said.out === text)
    await other.kill()
    await says('it says so', () => follower.said.err.split('trying again').length > n + 1)
    await print(`while it was away ${n}\n`)
    other = await replica({}, port)
    await says('it is back', () => follower.said.out === text)
  }
  await print('last\n')
  await fail(job)
  const { out, err, code } = await follower.ended
  assert.equal([out, code], [text, 1])
  assert.match(err, `${job.name} failed (BuildFailed): exit code 2\n`)
  await other.close()
})

test('what this replica hears of comes at once', async () => {
  const job = await take()
  const follower = logs('-f', job.name)
  await says('it waits', () => hub.jobs.listenerCount(String(job.claim.jobId)) > 0)
  await appendLog(database, job.claim, 0, 'now\n')
  const begun = performance.now()
  hub.jobs.emit(String(job.claim.jobId))
  await until('it is here', () => follower.said.out === 'now\n', { intervalMs: 5 })
  const tookMs = performance.now() - begun
  assert.ok(tookMs < 700, `it took ${tookMs} ms`)
  await fail(job)
  assert.is((await follower.ended).code, 1)
})

test('a reader that goes is forgotten; one that takes nothing costs little, and is cut off', async () => {
  let readBytes = 0
  const counting = new Proxy(database, {
    get: (target, property) =>
      property === 'query'
        ? async (...args: Parameters<Database['query']>) => {
            const rows = await target.query<{ text?: Buffer }>(...args)
            for (const { text } of rows) readBytes += text?.length ?? 0
            return rows
          }
        : Reflect.get(target, property).bind?.(target),
  })
  const own = await replica({ database: counting, stalledMs: 500 })
  const job = await take()
  const going = shoal(['logs', '-n', 'demo', '-f', job.name], own.url)
  const readers = () => own.jobs.listenerCount(String(job.claim.jobId))
  await says('it follows', () => readers() === 1)
  await database.query('DO SLEEP(1.2)')
  await appendLog(database, job.claim, 0, 'at last\n')
  await says('it is still there, though there was nothing to take', () => going.said.out === 'at last\n')
  assert.is(going.said.err, '')
  going.child.kill('SIGKILL')
  await says('it is forgotten', () => readers() === 0)

  // More than sockets hold.
  const totalBytes = 40 << 20
  const part = 'x'.repeat(1 << 20)
  for (let at = 0; at < totalBytes; at += part.length)
    await database.execute('INSERT INTO job_log VALUES (?, 1, ?, ?)', [job.claim.jobId, 8 + at, part])
  readBytes = 0
  const socket = connect(own.port, '127.0.0.1').pause()
  await once(socket, 'connect')
  const auth = `authorization: Bearer ${api.token}`
  socket.write(`GET /v1/jobs/demo/${job.name}/log?follow=true HTTP/1.1\r\nhost: hub\r\n${auth}\r\n\r\n`)
  await says('it has begun', () => readBytes > 0)
  await says('it is cut off', async () => (await connections(own.server)) === 0)
  assert.ok(readBytes < totalBytes / 2, `${readBytes} bytes were read for it`)
  socket.destroy()
  await fail(job)
  await own.close()
})
const connections = (server: { server: { getConnections(done: (error: unknown, n: number) => void): void } }) =>
  new Promise<number>((resolve) => server.server.getConnections((_error, n) => resolve(n)))

test('a replica that stops ends its readers, who come back; too many are told to', async () => {
  const own = await replica({ maxReaders: 2 })
  const job = await take()
  await appendLog(database, job.claim, 0, 'begun')
  const follower = shoal(['logs', '-n', 'demo', '-f', job.name], own.url)
  const text = get(job.name, '?follow=true', api.token, own.url)
  await says('both follow', () => own.jobs.listenerCount(String(job.claim.jobId)) === 2)
  assert.is(await get(job.name, '', api.token, own.url), 'Unavailable')
  const begun = performance.now()
  await own.close()
  assert.ok(performance.now() - begun < 3000, 'nobody holds it up')
  assert.is(await text, 'Unavailable', 'half a text is not taken for a whole one')
  const next = await replica({}, own.port)
  await fail(job)
  assert.is((await follower.ended).code, 1)
  await next.close()
})

test('only who may get the BuildJob reads its log, and what is not there is said', async () => {
  const job = await take()
  await appendLog(database, job.claim, 0, 'text')
  assert.is(await get(job.name), 'text')
  assert.is(await get(job.name, '?offset=4'), '')
  assert.is(await get(job.name, '', nobody), 'Forbidden')
  assert.is(await get(job.name, '', 'made-up'), 'Unauthorized')
  assert.is(await get('none'), 'NotFound')
  assert.is(await get('none', '?follow=true'), 'NotFound')
  assert.is(await get(job.name, '?attempt=0'), 'Invalid')
  await fail(job)
  const { name } = await fixture.queue('true')
  const waiting = await logs(name).ended
  assert.equal([waiting.out, waiting.code], ['', 0])
  assert.match(waiting.err, `${name} waits for a worker; -f waits with it`)
  const lost = await shoal(['logs', '-n', 'demo', '-f', name], 'http://127.0.0.1:1').ended
  assert.is(lost.code, 1)
  assert.match(lost.err, /^shoal: 127\.0\.0\.1:1: .*ECONNREFUSED.*\n$/)
})

test.run()
