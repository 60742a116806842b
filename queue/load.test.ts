import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { seedJobs } from '../hack/bench/queue/seed.ts'
import { startDatabase } from '../hack/parts/database.ts'
import { Database, type Sql } from '../runtime/sql.ts'
import { claim } from './claim.ts'
import { enqueue } from './enqueue.ts'
import { finish } from './finish.ts'
import { nowMs } from './job.ts'
import { recordUpload } from './lease.ts'
import { queueFigures, queueRates } from './load.ts'
import { listWorkers } from './workers.ts'

const test = suite('load')
const server = await startDatabase()
const database = new Database(await server.createSchema('builds'))
await database.migrate(join(import.meta.dirname, 'migrations'))
const minute = 60_000

test.before.each(async () => {
  for (const table of ['pipeline', 'job', 'outcome', 'ready', 'blocked', 'slot', 'worker'])
    await database.execute(`DELETE FROM ${table}`)
})

let commits = 0
async function push(maxJobs = 100): Promise<void> {
  const commit = (++commits).toString(16).padStart(40, '0')
  await enqueue(database, { namespace: 'demo', pipeline: 'web', commit, ref: 'refs/heads/main', maxJobs })
}
let polls = 0
async function take() {
  const asking = { worker: 'w', pollId: ++polls, probeUrl: 'http://127.0.0.1:1', probeSecret: 's'.repeat(32) }
  const taken = await claim(database, asking)
  assert.ok(taken)
  return { jobId: taken.job.id, token: taken.token }
}
/** A build that began so long ago ends now. */
async function build(tookMs: number, result: 'Built' | 'Failed'): Promise<void> {
  await push()
  const held = await take()
  await database.execute(`UPDATE slot SET claimed_at_ms = ${nowMs} - ? WHERE job_id = ?`, [tookMs, held.jobId])
  await recordUpload(database, held, {})
  await finish(database, held, result === 'Built' ? { result } : { result, code: 'BuildFailed', message: '' })
}

test('an empty queue has no figures, no arrivals, and builds of which nothing is known', async () => {
  assert.equal(await queueFigures(database), { ready: 0, blocked: 0, running: 0, oldestReadyMs: undefined })
  assert.equal(await queueRates(database), { arrivalsPerMs: 0, buildMs: 5 * minute })
})

test('ready, blocked and running jobs are counted, and the oldest that waits', async () => {
  for (let n = 0; n < 4; n++) await push(3)
  await take()
  await database.execute('UPDATE ready SET created_at_ms = created_at_ms - 5000 ORDER BY job_id LIMIT 1')
  const { oldestReadyMs = 0, ...counts } = await queueFigures(database)
  assert.equal(counts, { ready: 2, blocked: 1, running: 1 })
  assert.ok(oldestReadyMs >= 5000 && oldestReadyMs < 15_000, String(oldestReadyMs))
})

test('arrivals are those of the last ten minutes', async () => {
  for (let n = 0; n < 6; n++) await push()
  await database.execute(`UPDATE job SET created_at_ms = created_at_ms - ${11 * minute} ORDER BY id LIMIT 2`)
  assert.is((await queueRates(database)).arrivalsPerMs, 4 / (10 * minute))
})

test('build times are those of the builds that ended last, without what came after the build', async () => {
  await build(30_000, 'Built')
  await build(90_000, 'Failed')
  // Replicated for an hour.
  await database.execute(
    `UPDATE outcome SET phase = 'Succeeded', finished_at_ms = ${nowMs} + 3600000 WHERE phase = 'Replicating'`,
  )
  const { buildMs } = await queueRates(database)
  assert.ok(buildMs >= 60_000 && buildMs < 65_000, String(buildMs))
})

test('builds that take much longer than the last ones are seen while they run', async () => {
  await build(1000, 'Built')
  await push()
  const { jobId } = await take()
  await database.execute('UPDATE slot SET claimed_at_ms = claimed_at_ms - 600000 WHERE job_id = ?', [jobId])
  const { buildMs } = await queueRates(database)
  assert.ok(buildMs >= 600_000 && buildMs < 610_000, String(buildMs))
})

test('a history of 20,000 jobs is not read: the last ones are enough', async () => {
  await seedJobs(database, { waiting: 100, history: 20_000 })
  await database.execute("UPDATE outcome SET started_at_ms = 1, built_at_ms = 5001 WHERE phase = 'Succeeded'")
  await database.execute('ANALYZE TABLE job, outcome')
  const rowsRead = async (sql: Sql) => {
    const status = await sql.query<{ Value: string }>("SHOW SESSION STATUS LIKE 'Handler_read%'")
    return status.reduce((total, { Value }) => total + Number(Value), 0)
  }
  const { read, rates } = await database.transaction(async (sql) => {
    const before = await rowsRead(sql)
    await queueFigures(sql)
    await listWorkers(sql)
    const found = await queueRates(sql)
    return { read: (await rowsRead(sql)) - before, rates: found }
  })
  assert.is(rates.buildMs, 5000)
  assert.ok(read < 4000, `${read} rows were read`)
})

test.after(async () => {
  await database[Symbol.asyncDispose]()
  await server[Symbol.asyncDispose]()
})
test.run()
