import { readdir, readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { gunzipSync } from 'node:zlib'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import type { ShoalError } from '../../api/errors.ts'
import { Store } from '../../artifacts/store.ts'
import { startDatabase } from '../../hack/parts/database.ts'
import { until } from '../../hack/parts/process.ts'
import { startStore } from '../../hack/parts/store.ts'
import { claim } from '../../queue/claim.ts'
import { enqueue } from '../../queue/enqueue.ts'
import { finish } from '../../queue/finish.ts'
import { requeueLost } from '../../queue/lease.ts'
import { appendLog } from '../../queue/log.ts'
import { createLogger } from '../../runtime/log.ts'
import { Metrics } from '../../runtime/metrics.ts'
import { Database } from '../../runtime/sql.ts'
import { LogKeeper, type LogKeeperOptions } from './logKeeper.ts'
import { moveLog } from './logObject.ts'
import { readLog } from './logReader.ts'

const test = suite('logs on their way to the bucket')
const parts = new AsyncDisposableStack()
const [mariadb, bucket] = await Promise.all([startDatabase(), startStore()])
for (const part of [mariadb, bucket]) parts.use(part)
await bucket.createBucket('home')
const url = await mariadb.createSchema('builds')
const database = parts.use(new Database(url))
await database.migrate(join(import.meta.dirname, '../../queue/migrations'))
const store = parts.use(new Store({ ...bucket, bucket: 'home', timeoutMs: 2000 }))
const sources = { database, homeStore: async () => store }
const never = new AbortController().signal
test.after(() => parts.disposeAsync())

let count = 0
async function claimNext() {
  const claimer = { worker: 'w', pollId: ++count, probeUrl: 'http://127.0.0.1:1', probeSecret: 's'.repeat(32) }
  const taken = await claim(database, claimer)
  assert.ok(taken)
  const { id, namespace, name } = taken.job
  return { id, namespace, name, claim: { jobId: id, token: taken.token } }
}
async function take() {
  const commit = (++count).toString(16).padStart(12, '0').padEnd(40, '0')
  await enqueue(database, { namespace: 'demo', pipeline: 'web', commit, ref: 'refs/heads/main', maxJobs: 1000 })
  return claimNext()
}
type Job = Awaited<ReturnType<typeof take>>
const fail = (job: Job) => finish(database, job.claim, { result: 'Failed', code: 'BuildFailed', message: '' })
/** A job that is over, and printed this. */
async function over(...texts: string[]) {
  const job = await take()
  let offset = 0
  for (const text of texts) {
    await appendLog(database, job.claim, offset, text)
    offset += Buffer.byteLength(text)
  }
  await fail(job)
  return job
}
async function logOf({ id }: Job, attempt = 1, offset = 0) {
  let text = ''
  for await (const piece of readLog(sources, { jobId: id, attempt, offset }, never)) text += piece.text
  return text
}
const rowsOf = async (job: Job) => (await database.query('SELECT 1 FROM job_log WHERE job_id = ?', [job.id])).length
const folderOf = (job: Job) => join(bucket.dataDir, 'home/_logs', job.namespace, job.name)
const objectsOf = (job: Job) => readdir(folderOf(job)).catch(() => [])
const move = (job: Job, using: Database = database) => moveLog({ database: using, store, signal: never }, job)
/** The keeper, until what it is to do is done. */
async function keep(what: string, done: () => Promise<boolean>, more: Partial<LogKeeperOptions> = {}) {
  const stop = new AbortController()
  const log = createLogger('test', 'silent')
  const metrics = new Metrics()
  const keeper = new LogKeeper({ ...sources, log, metrics, everyMs: 20, retryMs: 20, ...more })
  const running = keeper.run(stop.signal)
  try {
    await until(what, done)
    return await metrics.registry.metrics()
  } finally {
    stop.abort()
    await running
  }
}

test('a log goes into one object once its build is over, with all attempts, and reads as before', async () => {
  const job = await take()
  await appendLog(database, job.claim, 0, 'of a lost worker\n')
  await requeueLost(database, job.claim)
  const second = await claimNext()
  assert.is(second.id, job.id)
  const line = `${'é€ lines '.repeat(20)}\n`
  const text = line.repeat(9000)
  let offset = 0
  for (let at = 0; at < text.length; at += 100_000) {
    const chunk = text.slice(at, at + 100_000)
    await appendLog(database, second.claim, offset, chunk)
    offset += Buffer.byteLength(chunk)
  }
  const running = await take()
  await appendLog(database, running.claim, 0, 'still')
  await fail(second)
  const metrics = await keep('its rows are gone', async () => (await rowsOf(job)) === 0)
  assert.match(metrics, /^shoal_logs_kept_total 1$/m)
  assert.match(metrics, /^shoal_log_backlog_jobs 0$/m)
  assert.is(await rowsOf(running), 1)

  const [object = ''] = await objectsOf(job)
  assert.is((await objectsOf(job)).length, 1)
  const whole = gunzipSync(await readFile(join(folderOf(job), object))).toString()
  assert.ok(whole === `of a lost worker\n${text}`, 'any gunzip shows it')
  assert.is(await logOf(job, 1), 'of a lost worker\n')
  assert.ok((await logOf(job, 2)) === text)
  const bytes = Buffer.from(text)
  for (const from of [Buffer.byteLength(line) * 7000, bytes.length - Buffer.byteLength(line), bytes.length])
    assert.ok((await logOf(job, 2, from)) === bytes.subarray(from).toString(), `from ${from}`)
  await fail(running)
  assert.is(await move(running), true)
})

test('what was left out is still marked', async () => {
  const job = await take()
  await appendLog(database, job.claim, 0, 'head')
  await appendLog(database, job.claim, 1004, 'tail')
  await fail(job)
  const before = await logOf(job)
  assert.is(before, 'head\n… 1000 bytes left out …\ntail')
  assert.is(await move(job), true)
  assert.is(await logOf(job), before)
  assert.is(await logOf(job, 1, 4), before.slice(4))
})

test('a reader that has begun goes on while its log is moved', async () => {
  const texts = Array.from({ length: 5 }, (_, n) => `${n}`.repeat(300_000))
  const job = await over(...texts)
  const pieces = readLog(sources, { jobId: job.id, attempt: 1, offset: 0 }, never)
  let text = (await pieces.next()).value?.text ?? ''
  assert.is(text.length, 300_000)
  assert.is(await move(job), true)
  for await (const piece of pieces) text += piece.text
  assert.ok(text === texts.join(''))
})

test('two that move the same log at once leave one object, and it is whole', async () => {
  for (let round = 0; round < 5; round++) {
    const job = await over('one ', 'two ', 'three')
    const moved = await Promise.all([move(job), move(job), move(job)])
    assert.ok(moved.includes(true))
    assert.is((await objectsOf(job)).length, 1)
    assert.equal([await rowsOf(job), await logOf(job)], [0, 'one two three'])
    assert.is(await move(job), false, 'there is nothing left to move')
    assert.is((await objectsOf(job)).length, 1)
  }
})

test('one that dies at any step loses nothing, and the next leaves one object', async () => {
  const job = await over('one ', 'two')
  // Its last statements fail, as when it was killed before them.
  const dying = new Proxy(database, {
    get: (target, property) =>
      property === 'transaction'
        ? () => Promise.reject(new Error('killed'))
        : Reflect.get(target, property).bind?.(target),
  })
  assert.is(await move(job, dying).catch((error: Error) => error.message), 'killed')
  assert.equal([(await objectsOf(job)).length, await rowsOf(job), await logOf(job)], [1, 2, 'one two'])
  assert.is(await move(job), true)
  assert.equal([(await objectsOf(job)).length, await rowsOf(job), await logOf(job)], [1, 0, 'one two'])
})

test('one that read while another took the rows away takes back what it wrote', async () => {
  const job = await over('one ', 'two')
  // It saw the first row only; then the other one was faster.
  const half = new Proxy(database, {
    get: (target, property) =>
      property === 'query'
        ? async (...args: Parameters<Database['query']>) => {
            const rows = await target.query<{ attempt?: number; text?: Buffer; parts?: number }>(...args)
            if (rows[0]?.text === undefined) return rows
            if (rows.length > 1) return rows.slice(0, 1)
            await move(job)
            return []
          }
        : Reflect.get(target, property).bind?.(target),
  })
  assert.is(await move(job, half), false)
  assert.equal([(await objectsOf(job)).length, await logOf(job)], [1, 'one two'])
})

test('while the bucket is away rows stay and are counted; then they are moved', async () => {
  const jobs = [await over('a'), await over('b')]
  await bucket.kill()
  const metrics = new Metrics()
  await keep('they are counted', async () => (await metrics.registry.metrics()).includes('shoal_log_backlog_jobs 2'), {
    metrics,
  })
  assert.equal(await Promise.all(jobs.map(rowsOf)), [1, 1])
  assert.is(await logOf(jobs[0] as Job), 'a')
  await bucket.start()
  await keep('they are moved', async () => (await Promise.all(jobs.map(rowsOf))).join() === '0,0')
  assert.equal(await Promise.all(jobs.map((job) => logOf(job))), ['a', 'b'])
})

test('of more logs than may wait the oldest are dropped', async () => {
  const jobs = [await over('a'), await over('b'), await over('c')]
  await bucket.kill()
  const metrics = new Metrics()
  await keep('the oldest is gone', async () => (await rowsOf(jobs[0] as Job)) === 0, { metrics, maxBacklog: 2 })
  assert.match(await metrics.registry.metrics(), /^shoal_logs_dropped_total 1$/m)
  assert.equal(await Promise.all(jobs.map(rowsOf)), [0, 1, 1])
  await bucket.start()
  await keep('the others are moved', async () => (await Promise.all(jobs.map(rowsOf))).join() === '0,0,0')
  assert.equal(await Promise.all(jobs.map((job) => logOf(job))), ['', 'b', 'c'])
})

test('a log that can’t be read says why', async () => {
  const job = await over('text')
  await move(job)
  await bucket.kill()
  const code = () => logOf(job).catch((error: ShoalError) => error.code)
  assert.is(await code(), 'StoreUnreachable')
  await bucket.start()
  for (const name of await objectsOf(job)) await store.delete(`_logs/demo/${job.name}/${name}`)
  assert.is(await code(), 'NotFound')
})

test.run()
