import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import type { ProbeAnswer } from '../api/workerApi.ts'
import { startDatabase } from '../hack/parts/database.ts'
import { FakeClock } from '../runtime/clock.fake.ts'
import { createLogger } from '../runtime/log.ts'
import { Metrics } from '../runtime/metrics.ts'
import { Database } from '../runtime/sql.ts'
import { claim, hear } from './claim.ts'
import { findJob } from './control.ts'
import { enqueue } from './enqueue.ts'
import { finish } from './finish.ts'
import { HealthChecker } from './healthChecker.ts'
import { heartbeat } from './lease.ts'

const test = suite('health checker')
const server = await startDatabase({ own: true })
const database = new Database(await server.createSchema('builds'))
await database.migrate(join(import.meta.dirname, 'migrations'))

const leaseMs = 30_000
const intervalMs = 5000
const name = 'web-aaaaaaaaaaaa'
const never = new AbortController().signal
let clock = new FakeClock()
/** What each worker answers to a probe; one that isn't here doesn't. */
let answers = new Map<string, Omit<ProbeAnswer, 'worker'>>()
let checker: HealthChecker

test.before.each(async () => {
  for (const table of ['pipeline', 'job', 'outcome', 'ready', 'blocked', 'slot', 'worker'])
    await database.execute(`DELETE FROM ${table}`)
  clock = new FakeClock()
  answers = new Map()
  checker = new HealthChecker({
    database,
    log: createLogger('test', 'silent'),
    metrics: new Metrics(),
    clock,
    leaseMs,
    intervalMs,
    alarmMs: 1000,
    async probe(worker) {
      const answer = answers.get(worker.name)
      if (!answer) throw new Error('no answer')
      return { worker: worker.name, ...answer }
    },
  })
  await enqueue(database, {
    namespace: 'demo',
    pipeline: 'web',
    commit: 'a'.repeat(40),
    ref: 'refs/heads/main',
    maxJobs: 1,
  })
})

const asking = (worker: string, pollId: number) => ({
  ...{ worker, pollId, probeUrl: 'http://127.0.0.1:1', probeSecret: 's'.repeat(32) },
})

async function take(worker: string, pollId = 1) {
  const taken = await claim(database, asking(worker, pollId))
  assert.ok(taken)
  // A probe counts as after the claim when it began in a later millisecond.
  await database.query('DO SLEEP(0.002)')
  return { jobId: taken.job.id, token: taken.token }
}
const phase = async () => (await findJob(database, 'demo', name))?.phase
/** Rounds as `run` does them, for so long. */
async function rounds(forMs: number): Promise<void> {
  for (let ms = 0; ms <= forMs; ms += intervalMs) {
    await checker.round(never)
    await clock.advance(intervalMs)
  }
}

test('a worker that answers without its job, having processed the poll that gave it, loses it at once', async () => {
  await take('w1', 7)
  answers.set('w1', { lastPollId: 7, held: [] })
  await checker.round(never)
  assert.is(await phase(), 'Queued')
})

test('a worker that has not processed the claim’s answer yet keeps the job', async () => {
  await take('w1', 7)
  answers.set('w1', { lastPollId: 6, held: [] })
  await rounds(leaseMs - intervalMs)
  assert.is(await phase(), 'Running')
})

test('a job claimed while its worker was being probed is kept', async () => {
  answers.set('w1', { lastPollId: 7, held: [] })
  const late = new HealthChecker({
    database,
    log: createLogger('test', 'silent'),
    metrics: new Metrics(),
    clock,
    leaseMs,
    async probe(worker) {
      // The answer was made before the claim and arrives after it.
      if (worker.name === 'w1') await take('w1', 7)
      return { worker: worker.name, lastPollId: 7, held: [] }
    },
  })
  await hear(database, [asking('w1', 1)])
  await late.round(never)
  assert.is(await phase(), 'Running')
})

test('a worker that lists its job keeps it, though its heartbeats don’t come', async () => {
  const held = await take('w1')
  answers.set('w1', { lastPollId: 1, held: [held] })
  await rounds(3 * leaseMs)
  assert.is(await phase(), 'Running')
})

test('heartbeats alone keep a job whose worker can’t be probed', async () => {
  const held = await take('w1')
  for (let round = 0; round < 20; round++) {
    await heartbeat(database, held)
    await rounds(intervalMs)
  }
  assert.is(await phase(), 'Running')
})

test('silence for less than a lease changes nothing, for longer the job goes back', async () => {
  await take('w1')
  await rounds(leaseMs - intervalMs)
  assert.is(await phase(), 'Running')
  await rounds(3 * intervalMs)
  assert.is(await phase(), 'Queued')
})

test('a checker that was away declares nobody dead', async () => {
  await take('w1')
  await rounds(leaseMs - intervalMs)
  await clock.advance(100 * leaseMs)
  await rounds(leaseMs - intervalMs)
  assert.is(await phase(), 'Running')
})

test('a checker that was away for little more than a lease declares nobody dead', async () => {
  await take('w1')
  await rounds(2 * intervalMs)
  await clock.advance(leaseMs)
  await rounds(leaseMs - intervalMs)
  assert.is(await phase(), 'Running')
})

test('a round that waited for a database without an answer declares nobody dead', async () => {
  await take('w1')
  await rounds(2 * intervalMs)
  await server.pause()
  const round = checker.round(never)
  await new Promise((resolve) => setTimeout(resolve, 20))
  await clock.advance(2 * leaseMs)
  server.resume()
  await round
  assert.is(await phase(), 'Running')
})

test('while the database is away nobody is silent', async () => {
  await take('w1')
  await rounds(leaseMs - intervalMs)
  await server.stop()
  const stop = new AbortController()
  const running = checker.run(stop.signal)
  for (let step = 0; step < 4; step++) {
    await clock.advance(leaseMs)
    await new Promise((resolve) => setImmediate(resolve))
  }
  stop.abort()
  await running
  await server.start()
  await rounds(leaseMs - intervalMs)
  assert.is(await phase(), 'Running')
})

test('a job that lost three workers fails', async () => {
  for (const worker of ['w1', 'w2', 'w3']) {
    await take(worker)
    answers.set(worker, { lastPollId: 1, held: [] })
    await checker.round(never)
  }
  const job = await findJob(database, 'demo', name)
  assert.equal([job?.phase, job?.code], ['Failed', 'WorkerLost'])
})

test('what answers is seen, and what was not for the alarm’s time is silent', async () => {
  await hear(database, [asking('old', 1), asking('new', 1)])
  await database.execute(
    `UPDATE worker SET last_seen_ms = (SELECT CAST(UNIX_TIMESTAMP(NOW(3)) * 1000 AS SIGNED)) - 5000`,
  )
  answers.set('new', { lastPollId: 0, held: [] })
  await rounds(leaseMs)
  assert.equal(checker.silent, ['old'])
  const [row] = await database.query<{ silent: number }>(
    "SELECT CAST(UNIX_TIMESTAMP(NOW(3)) * 1000 AS SIGNED) - last_seen_ms AS silent FROM worker WHERE name = 'new'",
  )
  assert.ok((row?.silent ?? 1e9) < 4000)
  answers.set('old', { lastPollId: 0, held: [] })
  await rounds(0)
  assert.equal(checker.silent, [])
})

test('after an outage nobody is silent before they could be heard for a whole lease', async () => {
  await hear(database, [asking('w1', 1)])
  await database.execute('UPDATE worker SET last_seen_ms = last_seen_ms - 3600000')
  await rounds(leaseMs - intervalMs)
  assert.is(checker.silent, undefined)
  await rounds(intervalMs)
  assert.equal(checker.silent, ['w1'])
  await clock.advance(leaseMs)
  await rounds(0)
  assert.is(checker.silent, undefined)
})

test('a worker that was silent for a day is forgotten, unless it holds a job', async () => {
  const held = await take('busy')
  await hear(database, [asking('idle', 1)])
  await database.execute('UPDATE worker SET last_seen_ms = last_seen_ms - 90000000')
  await rounds(0)
  const names = async () => (await database.query<{ name: string }>('SELECT name FROM worker')).map(({ name }) => name)
  assert.equal(await names(), ['busy'])
  await finish(database, held, { result: 'HandedBack' })
  await rounds(0)
  assert.equal(await names(), [])
})

test.after(async () => {
  await database[Symbol.asyncDispose]()
  await server[Symbol.asyncDispose]()
})
test.run()
