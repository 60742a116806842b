import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { Fenced } from '../api/errors.ts'
import { startDatabase } from '../hack/parts/database.ts'
import { until } from '../hack/parts/process.ts'
import { Database } from '../runtime/sql.ts'
import { claim } from './claim.ts'
import { cancel, changesAfter, findJob, markSucceeded, positions, setPriority, setReplicated } from './control.ts'
import { enqueue } from './enqueue.ts'
import { finish } from './finish.ts'
import { heartbeat, recordUpload, requeueLost } from './lease.ts'
import { appendLog } from './log.ts'

const test = suite('queue')
const server = await startDatabase()
const url = await server.createSchema('builds')
const database = new Database(url)
await database.migrate(join(import.meta.dirname, 'migrations'))

const commit = (n: number) => n.toString(16).padStart(8, '0').padEnd(40, '0')
const push = (n: number, more: object = {}) =>
  enqueue(database, {
    namespace: 'demo',
    pipeline: 'web',
    commit: commit(n),
    ref: 'refs/heads/main',
    maxJobs: 1000,
    ...more,
  })
const claimer = (worker: string, pollId = 1) => ({
  worker,
  pollId,
  probeUrl: 'http://127.0.0.1:1',
  probeSecret: 's'.repeat(32),
})
const take = async (worker: string, pollId = 1) => {
  const taken = await claim(database, claimer(worker, pollId))
  assert.ok(taken, 'a job was there')
  return { ...taken, claim: { jobId: taken.job.id, token: taken.token } }
}
const build = async (taken: Awaited<ReturnType<typeof take>>) => {
  await recordUpload(database, taken.claim, { digest: 'x' })
  await finish(database, taken.claim, { result: 'Built' })
}

test.before.each(async () => {
  for (const table of ['pipeline', 'job', 'ready', 'blocked', 'slot', 'outcome', 'worker', 'job_log'])
    await database.execute(`DELETE FROM ${table}`)
})

test('the same commit pushed twice is one job, also at the same time', async () => {
  const pushes = await Promise.all(Array.from({ length: 8 }, () => push(1)))
  assert.is(new Set(pushes.map(({ job }) => job.id)).size, 1)
  assert.is(pushes.filter(({ created }) => created).length, 1)
  assert.is(pushes[0]?.job.name, 'web-000000010000')
})

test('two commits that begin the same are two jobs, and so are their rebuilds', async () => {
  const [one, other] = ['a', 'b'].map((end) => `${'0123456789ab'.padEnd(39, '0')}${end}`)
  assert.is((await push(1, { commit: one })).job.name, 'web-0123456789ab')
  assert.is((await push(1, { commit: other })).job.name, `web-${other}`)
  assert.is((await push(1, { commit: other })).created, false)
  for (const n of [2, 3]) {
    assert.is((await push(1, { commit: other, rebuild: true })).job.name, `web-0123456789ab-${n}`)
    assert.is((await push(1, { commit: one, rebuild: true })).job.name, `web-${one}-${n}`)
  }
})

test('every change of a job and of its outcome is told, also within one millisecond', async () => {
  await using stopped = new Database(url, { connectionLimit: 1 })
  await stopped.execute('SET timestamp = 1700000000')
  const last = async (jobId: number) => {
    const changes = await changesAfter(stopped, { ms: 0, rowId: 0 })
    assert.ok(changes.every((change) => change.jobId === jobId))
    const end = changes.at(-1)
    assert.equal(end && (await changesAfter(stopped, end)), [])
    return new Map(changes.map(({ rowId, ms }) => [rowId % 2, ms]))
  }
  const { job } = await push(1)
  const seen: (number | undefined)[] = []
  for (const priority of [1, 2, 3]) {
    await setPriority(stopped, job.id, priority)
    seen.push((await last(job.id)).get(0))
  }
  await build(await take('w1'))
  for (const replicated of ['1/3', '2/3', '3/3']) {
    await setReplicated(stopped, job.id, replicated)
    seen.push((await last(job.id)).get(1))
  }
  assert.is(new Set(seen).size, 6)
})

test('CancelOlder ends what earlier pushes to the same ref still do, waiting, blocked and running', async () => {
  const newer = (n: number, more: object = {}) => push(n, { maxJobs: 2, cancelOlder: true, ...more })
  const phase = async (n: number) => (await findJob(database, 'demo', `web-${commit(n).slice(0, 12)}`))?.phase
  await push(1, { maxJobs: 2 })
  const running = await take('w1')
  await push(2, { maxJobs: 2 })
  await push(3, { maxJobs: 2 })
  await push(4, { maxJobs: 2, ref: 'refs/heads/release' })
  await newer(5)
  assert.equal(await Promise.all([1, 2, 3, 4, 5].map(phase)), ['Running', 'Cancelled', 'Cancelled', 'Queued', 'Queued'])
  assert.equal(await heartbeat(database, running.claim), { cancel: true })
  // The same push again, as a poll finds it, cancels nothing that came later.
  await newer(6)
  await newer(5)
  assert.is(await phase(6), 'Queued')
  await finish(database, running.claim, { result: 'Failed', code: 'Cancelled', message: 'cancelled' })
  assert.is((await take('w1', 2)).job.commit, commit(4))
  assert.is((await take('w2')).job.commit, commit(6))
  assert.is(await claim(database, claimer('w3')), undefined)
})

test('while jobs are claimed and finished, pushes that cancel older ones leave one job and no slot behind', async () => {
  const over = new AbortController()
  const worker = async (name: string) => {
    for (let pollId = 1; !over.signal.aborted; pollId++) {
      const taken = await claim(database, claimer(name, pollId))
      if (!taken) continue
      const held = { jobId: taken.job.id, token: taken.token }
      const { cancel } = await heartbeat(database, held)
      await recordUpload(database, held, { digest: 'x' })
      await finish(database, held, cancel ? { result: 'Failed', code: 'Cancelled', message: '' } : { result: 'Built' })
    }
  }
  const workers = ['w1', 'w2', 'w3', 'w4'].map(worker)
  for (let n = 1; n <= 60; n++) await push(n, { maxJobs: 2, cancelOlder: true })
  await until('every job is over', async () => {
    const [row] = await database.query<{ n: number }>(
      'SELECT COUNT(*) AS n FROM job WHERE id NOT IN (SELECT job_id FROM outcome)',
    )
    return row?.n === 0
  })
  over.abort()
  await Promise.all(workers)
  for (const table of ['ready', 'blocked', 'slot'])
    assert.equal(await database.query(`SELECT * FROM ${table}`), [], table)
  assert.is((await findJob(database, 'demo', `web-${commit(60).slice(0, 12)}`))?.phase, 'Replicating')
})

test('a rebuild is a job of its own, named after the first', async () => {
  await push(1)
  const again = await push(1, { rebuild: true })
  assert.is(again.job.name, 'web-000000010000-2')
})

test('eight workers at once take 300 jobs, each once', async () => {
  for (let n = 0; n < 300; n++) await push(n)
  const taken: number[] = []
  const worker = async (name: string) => {
    for (let pollId = 1; ; pollId++) {
      const got = await claim(database, claimer(name, pollId))
      if (!got) return
      taken.push(got.job.id)
      await recordUpload(database, { jobId: got.job.id, token: got.token }, { digest: 'x' })
      await finish(database, { jobId: got.job.id, token: got.token }, { result: 'Built' })
    }
  }
  await Promise.all(Array.from({ length: 8 }, (_, index) => worker(`w${index}`)))
  assert.is(taken.length, 300)
  assert.is(new Set(taken).size, 300)
})

test('jobs come in the order they were pushed, a higher priority before', async () => {
  for (const n of [1, 2, 3]) await push(n)
  const last = await push(4)
  await setPriority(database, last.job.id, 10)
  assert.is((await positions(database, 10)).get(`${last.job.namespace}/${last.job.name}`), 1)
  const order: string[] = []
  for (const pollId of [1, 2, 3, 4]) order.push((await take('w', pollId)).job.commit)
  assert.equal(order, [4, 1, 2, 3].map(commit))
})

test('asking again with the same poll gives the same job', async () => {
  await push(1)
  await push(2)
  const first = await take('w', 7)
  const again = await take('w', 7)
  assert.is(again.job.id, first.job.id)
  assert.is(again.token, first.token)
})

test('a pipeline runs no more jobs than it may; the next starts when one ends', async () => {
  for (const n of [1, 2, 3]) await push(n, { maxJobs: 2 })
  await push(9, { pipeline: 'other', maxJobs: 1 })
  const first = await take('w1')
  const second = await take('w2')
  assert.equal([first.job.commit, second.job.commit], [commit(1), commit(2)])
  assert.is((await take('w3')).job.pipeline, 'other')
  assert.is(await claim(database, claimer('w4')), undefined)
  await build(first)
  assert.is((await take('w4', 2)).job.commit, commit(3))
})

test('a token that is not the latest is refused everywhere', async () => {
  await push(1)
  const old = await take('w1')
  await requeueLost(database, old.claim)
  const fresh = await take('w2')
  const refused = async (what: Promise<unknown>) => {
    try {
      await what
      assert.unreachable('was not refused')
    } catch (error) {
      assert.instance(error, Fenced)
    }
  }
  await refused(heartbeat(database, old.claim))
  await refused(recordUpload(database, old.claim, { digest: 'old' }))
  await refused(appendLog(database, old.claim, 0, 'old'))
  await refused(finish(database, old.claim, { result: 'Failed', code: 'BuildFailed', message: 'old' }))
  await build(fresh)
  const job = await findJob(database, 'demo', fresh.job.name)
  assert.is(job?.phase, 'Replicating')
  assert.is(JSON.parse(job?.facts ?? '{}').digest, 'x')
  await refused(finish(database, old.claim, { result: 'Failed', code: 'BuildFailed', message: 'old' }))
})

test('a finish whose answer was lost may be repeated', async () => {
  await push(1)
  const taken = await take('w1')
  await build(taken)
  await finish(database, taken.claim, { result: 'Built' })
  await markSucceeded(database, taken.job.id)
  await finish(database, taken.claim, { result: 'Built' })
  assert.is((await findJob(database, 'demo', taken.job.name))?.phase, 'Succeeded')
})

test('nothing is built that was not uploaded under the same token', async () => {
  await push(1)
  const lost = await take('w1')
  await recordUpload(database, lost.claim, { digest: 'lost' })
  await requeueLost(database, lost.claim)
  const taken = await take('w2')
  try {
    await finish(database, taken.claim, { result: 'Built' })
    assert.unreachable()
  } catch (error) {
    assert.instance(error, Fenced)
  }
})

test('a job of a lost worker goes back to its place; the third loss fails it', async () => {
  await push(1)
  await push(2)
  for (const pollId of [1, 2]) {
    const taken = await take('w', pollId)
    assert.is(taken.job.commit, commit(1))
    assert.is(await requeueLost(database, taken.claim), 'requeued')
    assert.is(await requeueLost(database, taken.claim), 'gone')
  }
  const third = await take('w', 3)
  assert.is(third.job.attempt, 3)
  assert.is(await requeueLost(database, third.claim), 'failed')
  const job = await findJob(database, 'demo', third.job.name)
  assert.equal([job?.phase, job?.code], ['Failed', 'WorkerLost'])
})

test('a job handed back goes to its place and is not charged', async () => {
  await push(1)
  await push(2)
  const taken = await take('w', 1)
  await finish(database, taken.claim, { result: 'HandedBack' })
  const again = await take('w', 2)
  assert.is(again.job.id, taken.job.id)
  assert.is(again.job.attempt, 1)
})

test('a cancelled job is never handed out; a running one is told at its heartbeat', async () => {
  const queued = await push(1)
  await push(2)
  await cancel(database, queued.job.id)
  const running = await take('w')
  assert.is(running.job.commit, commit(2))
  await cancel(database, running.job.id)
  assert.equal(await heartbeat(database, running.claim), { cancel: true })
  await finish(database, running.claim, { result: 'Failed', code: 'Cancelled', message: 'cancelled' })
  const phases = await Promise.all([queued, running].map(({ job }) => findJob(database, 'demo', job.name)))
  assert.equal(
    phases.map((job) => job?.phase),
    ['Cancelled', 'Cancelled'],
  )
})

test.after(async () => {
  await database[Symbol.asyncDispose]()
  await server[Symbol.asyncDispose]()
})
test.run()
