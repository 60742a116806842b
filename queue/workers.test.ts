import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { startDatabase } from '../hack/parts/database.ts'
import { until } from '../hack/parts/process.ts'
import { Database } from '../runtime/sql.ts'
import { claim, hear, takeClaims } from './claim.ts'
import { enqueue } from './enqueue.ts'
import { finish } from './finish.ts'
import { drain, forget, leave, listWorkers, stateOf, undrain, workersLocked } from './workers.ts'

const test = suite('workers')
const server = await startDatabase()
const database = new Database(await server.createSchema('builds'))
await database.migrate(join(import.meta.dirname, 'migrations'))
const probeSecret = 's'.repeat(32)

test.before.each(async () => {
  for (const table of ['pipeline', 'job', 'outcome', 'ready', 'blocked', 'slot', 'worker'])
    await database.execute(`DELETE FROM ${table}`)
})

let commits = 0
async function push(): Promise<number> {
  const commit = (++commits).toString(16).padStart(40, '0')
  const pushed = { namespace: 'demo', pipeline: 'web', commit, ref: 'refs/heads/main', maxJobs: 10_000 }
  return (await enqueue(database, pushed)).job.id
}
let polls = 0
const claimer = (worker: string, more: object = {}) => ({
  ...{ worker, pollId: ++polls, probeUrl: 'http://127.0.0.1:1', probeSecret },
  ...more,
})
const names = async () => (await listWorkers(database)).map(({ name }) => name)
const states = async () => Object.fromEntries((await listWorkers(database)).map((it) => [it.name, stateOf(it, 60_000)]))

test('workers are listed with what they build, by class and name', async () => {
  await push()
  await hear(database, [claimer('b'), claimer('a'), claimer('c', { class: 'large', isolation: 'its own user' })])
  const taken = await claim(database, claimer('b'))
  assert.equal(await names(), ['c', 'a', 'b'])
  const [large, , busy] = await listWorkers(database)
  assert.equal([large?.class, large?.isolation, large?.job], ['large', 'its own user', undefined])
  assert.equal([busy?.job?.namespace, busy?.job?.name], ['demo', taken?.job.name])
  assert.ok(Math.abs((busy?.job?.sinceMs ?? 0) - (busy?.nowMs ?? 0)) < 5000)
  assert.equal(await states(), { a: 'idle', b: 'busy', c: 'idle' })
})

test('one that was not heard for the alarm’s time is silent', async () => {
  await hear(database, [claimer('w')])
  await database.execute('UPDATE worker SET last_seen_ms = last_seen_ms - 61000')
  assert.equal(await states(), { w: 'silent' })
})

test('only the idle are drained, and they get no job until that is taken back', async () => {
  await push()
  await hear(database, [claimer('idle'), claimer('busy')])
  await claim(database, claimer('busy'))
  assert.equal(await drain(database, ['idle', 'busy', 'unknown']), ['idle'])
  assert.equal(await states(), { idle: 'draining', busy: 'busy' })
  const id = await push()
  await hear(database, [claimer('new')])
  const { claims: given } = await takeClaims(database, { claimers: [claimer('idle'), claimer('new')] })
  assert.is(given[0], 'draining')
  assert.is(typeof given[1] === 'object' && given[1].job.id, id)
  await undrain(database, ['idle'])
  const next = await push()
  assert.is((await claim(database, claimer('idle')))?.job.id, next)
})

test('an answer that was lost is given again to one that was drained since', async () => {
  await push()
  const asked = claimer('w')
  const first = await claim(database, asked)
  await database.execute('UPDATE worker SET draining = TRUE')
  assert.is((await claim(database, asked))?.token, first?.token)
})

test('whoever drains waits for the claim that is under way, and then sees its lease', async () => {
  await push()
  const asked = claimer('w')
  await hear(database, [asked])
  const drained = Promise.withResolvers<string[]>()
  let ended = false
  await database.transaction(async (sql) => {
    const [worker] = await sql.query<{ id: number; draining: number }>(...workersLocked(['w']))
    assert.is(worker?.draining, 0)
    void drain(database, ['w'])
      .finally(() => {
        ended = true
      })
      .then(drained.resolve, drained.reject)
    await until('it waits for the row', async () => {
      const statements = await database.query<{ info: string | null }>(
        'SELECT info AS info FROM information_schema.processlist',
      )
      return statements.some(
        ({ info }) => info?.startsWith('SELECT id, name FROM worker') && info.endsWith('FOR UPDATE'),
      )
    })
    assert.not(ended)
    await sql.execute("UPDATE slot SET worker = ?, token = '1-x', poll_id = 1", [worker?.id ?? 0])
  })
  assert.equal(await drained.promise, [])
  assert.equal(await states(), { w: 'busy' })
})

test('20 workers claim while they are drained again and again: nobody that was drained holds a job', async () => {
  for (let n = 0; n < 400; n++) await push()
  const workers = Array.from({ length: 20 }, (_, n) => `w${n}`)
  await hear(
    database,
    workers.map((name) => claimer(name)),
  )
  const held = new Map<string, { jobId: number; token: string }>()
  let claims = 0
  let drains = 0
  const end = performance.now() + 3000
  const claiming = async () => {
    while (performance.now() < end) {
      const free = workers.filter((name) => !held.has(name))
      const { claims: given } = await takeClaims(database, { claimers: free.map((name) => claimer(name)) })
      given.forEach((claimed, n) => {
        if (typeof claimed !== 'object') return
        claims++
        held.set(free[n] ?? '', { jobId: claimed.job.id, token: claimed.token })
      })
      for (const [name, claim] of held) {
        await finish(database, claim, { result: 'HandedBack' })
        held.delete(name)
      }
    }
  }
  const draining = async () => {
    while (performance.now() < end) {
      const drained = await drain(database, workers)
      drains += drained.length
      if (drained.length === 0) continue
      // A claim that began before would commit now.
      const busy = await database.query(
        'SELECT worker.name FROM slot JOIN worker ON worker.id = slot.worker WHERE worker.name IN (?)',
        [drained],
      )
      assert.equal(busy, [])
      await undrain(database, drained)
    }
  }
  await Promise.all([claiming(), draining()])
  assert.ok(claims > 20 && drains > 20, `${claims} claims, ${drains} drains`)
})

test('who leaves is forgotten, unless it holds a job or the secret is another’s', async () => {
  await push()
  await hear(database, [claimer('gone'), claimer('busy'), claimer('other')])
  await claim(database, claimer('busy'))
  await leave(database, 'gone', probeSecret)
  await leave(database, 'busy', probeSecret)
  await leave(database, 'other', 'x'.repeat(32))
  assert.equal(await names(), ['busy', 'other'])
  assert.equal(await forget(database, ['busy', 'other']), ['other'])
  assert.equal(await names(), ['busy'])
})

test.after(async () => {
  await database[Symbol.asyncDispose]()
  await server[Symbol.asyncDispose]()
})
test.run()
