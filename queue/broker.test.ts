import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { startDatabase } from '../hack/parts/database.ts'
import { until } from '../hack/parts/process.ts'
import { systemClock as clock } from '../runtime/clock.ts'
import { createLogger } from '../runtime/log.ts'
import { Database } from '../runtime/sql.ts'
import { Broker } from './broker.ts'
import { enqueue } from './enqueue.ts'
import { finish } from './finish.ts'
import { recordUpload } from './lease.ts'
import { drain, undrain } from './workers.ts'

const test = suite('claim broker')
const server = await startDatabase()
const database = new Database(await server.createSchema('builds'))
await database.migrate(join(import.meta.dirname, 'migrations'))
const log = createLogger('test', 'silent')

const commit = (n: number) => n.toString(16).padStart(8, '0').padEnd(40, '0')
const push = (n: number) =>
  enqueue(database, { namespace: 'demo', pipeline: 'web', commit: commit(n), ref: 'refs/heads/main', maxJobs: 1000 })
const claimer = (worker: string, pollId = 1) => ({
  ...{ worker, pollId, probeUrl: 'http://127.0.0.1:1', probeSecret: 's'.repeat(32) },
})
const never = new AbortController().signal

/** A replica's broker; ended by disposing. */
function startBroker(options: { lookMs?: number; gatherMs?: number; maxBatch?: number } = {}) {
  const broker = new Broker({ database, clock, log, lookMs: 20, gatherMs: 50, ...options })
  const stop = new AbortController()
  const running = broker.run(stop.signal)
  const ask = (worker: string, { pollId = 1, waitMs = 10_000, signal = never } = {}) =>
    broker.ask(claimer(worker, pollId), { waitMs, signal })
  return {
    broker,
    ask,
    async [Symbol.asyncDispose]() {
      stop.abort()
      await running
    },
  }
}

test.before.each(async () => {
  for (const table of ['pipeline', 'job', 'outcome', 'ready', 'blocked', 'slot', 'worker', 'job_log'])
    await database.execute(`DELETE FROM ${table}`)
})

test('who asks while nothing is ready waits, and gets what another replica queued', async () => {
  await using one = startBroker()
  const asked = one.ask('w1')
  await until('it waits', () => one.broker.waiting === 1)
  const { job } = await push(1)
  assert.is((await asked)?.job.id, job.id)
  assert.is(one.broker.waiting, 0)
})

test('who waited long enough gets nothing, and so does who waits when the broker ends', async () => {
  const one = startBroker()
  assert.is(await one.ask('w1', { waitMs: 30 }), undefined)
  const asked = one.ask('w2')
  await one[Symbol.asyncDispose]()
  assert.is(await asked, undefined)
})

test('an answer that was lost is given again, also while nothing is ready', async () => {
  await using one = startBroker()
  await push(1)
  const first = await one.ask('w1', { pollId: 7 })
  const again = await one.ask('w1', { pollId: 7 })
  assert.ok(first)
  assert.equal([again?.job.id, again?.token], [first.job.id, first.token])
  assert.is(await one.ask('w1', { pollId: 8, waitMs: 30 }), undefined)
})

test('a job claimed for one who hung up goes to another, and is no attempt', async () => {
  await using one = startBroker({ lookMs: 1 })
  for (let n = 0; n < 20; n++) {
    const gone = new AbortController()
    const lost = one.ask('gone', { pollId: n + 1, signal: gone.signal })
    await push(n)
    gone.abort()
    const kept = (await lost) ?? (await one.ask('here', { pollId: n + 1 }))
    assert.is(kept?.job.attempt, 1)
    assert.is(kept?.job.commit, commit(n))
  }
})

test('who finishes a job and asks again gets the next at once, without a look for it', async () => {
  await push(1)
  const { job } = await push(2)
  await using one = startBroker({ lookMs: 60_000 })
  const first = await one.ask('w1')
  const held = { jobId: first?.job.id ?? 0, token: first?.token ?? '' }
  await one.broker.finish(held, { result: 'Failed', code: 'BuildFailed', message: 'no' })
  const next = await one.ask('w1', { pollId: 2, signal: AbortSignal.timeout(10_000) })
  assert.is(next?.job.id, job.id)
})

test('workers that are draining get nothing, and keep nobody behind them waiting', async () => {
  await using one = startBroker({ maxBatch: 2 })
  const over = new AbortController()
  const drained = ['d1', 'd2', 'd3'].map((name) => one.ask(name, { signal: over.signal }))
  await until('they are noted', async () => (await drain(database, ['d1', 'd2', 'd3'])).length === 3)
  const asked = one.ask('w1')
  const { job } = await push(1)
  assert.is((await asked)?.job.id, job.id)
  await push(2)
  over.abort()
  assert.equal(await Promise.all(drained), [undefined, undefined, undefined])
  await undrain(database, ['d1'])
  assert.is((await one.ask('d1', { pollId: 2 }))?.job.commit, commit(2))
})

test('3 replicas serve 90 workers: 600 jobs, each once, the first first', async () => {
  for (let n = 0; n < 600; n++) await push(n)
  const brokers = [startBroker(), startBroker(), startBroker()]
  const taken: number[] = []
  const worker = async (index: number) => {
    for (let pollId = 1; ; pollId++) {
      const got = await brokers[index % 3]?.ask(`w${index}`, { pollId, waitMs: 200 })
      if (!got) return
      taken.push(got.job.id)
      const held = { jobId: got.job.id, token: got.token }
      await recordUpload(database, held, { digest: 'x' })
      await finish(database, held, { result: 'Built' })
    }
  }
  await Promise.all(Array.from({ length: 90 }, (_, index) => worker(index)))
  for (const broker of brokers) await broker[Symbol.asyncDispose]()
  assert.is(taken.length, 600)
  assert.is(new Set(taken).size, 600)
  // Nobody passes the head of the line by more than what is being claimed at once.
  const first = Math.min(...taken)
  for (const [place, id] of taken.entries()) assert.ok(Math.abs(id - first - place) <= 200, `${id} in place ${place}`)
  assert.equal(await database.query('SELECT * FROM slot WHERE worker > 0'), [])
})

test('2,000 workers that wait cost few statements', async () => {
  await using one = startBroker({ lookMs: 80, gatherMs: 1000 })
  const over = new AbortController()
  const asked = Array.from({ length: 2000 }, (_, index) =>
    one.ask(`w${index}`, { waitMs: 60_000, signal: over.signal }),
  )
  await until('all are noted', async () => {
    const [row] = await database.query<{ n: number }>('SELECT COUNT(*) AS n FROM worker')
    return row?.n === 2000
  })
  const questions = async () => {
    const [row] = await database.query<{ Value: string }>("SHOW GLOBAL STATUS LIKE 'Questions'")
    return Number(row?.Value)
  }
  const before = await questions()
  const beganMs = clock.monotonic()
  await clock.sleep(2000, never)
  const perSecond = ((await questions()) - before) / ((clock.monotonic() - beganMs) / 1000)
  assert.ok(perSecond < 20, `${perSecond} statements a second`)
  over.abort()
  await Promise.all(asked)
})

test.after(async () => {
  await database[Symbol.asyncDispose]()
  await server[Symbol.asyncDispose]()
})
test.run()
