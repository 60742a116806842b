import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import type { BuildJobPhase } from '../api/buildJob.ts'
import { startDatabase } from '../hack/parts/database.ts'
import { Database } from '../runtime/sql.ts'
import { deleteJobs, type HistoryQuery, listJobs, unfinishedJobs } from './history.ts'
import { keepLog, keptObjects, keptPage, loggedAttempts } from './keptLog.ts'

const test = suite('history')
const server = await startDatabase()
const database = new Database(await server.createSchema('builds'))
await database.migrate(join(import.meta.dirname, 'migrations'))
test.after(async () => {
  await database[Symbol.asyncDispose]()
  await server[Symbol.asyncDispose]()
})

let count = 0
/** Jobs as they are in the tables, the oldest first. */
async function insert(phases: BuildJobPhase[], { namespace = 'demo', pipeline = 'web' } = {}) {
  const isOver = (phase: BuildJobPhase) => phase !== 'Queued' && phase !== 'Running'
  const rows = phases.map(() => {
    const n = ++count
    const commit = String(n).padStart(40, '0')
    return [n, namespace, pipeline, commit, 1, `${pipeline}-${n}`, 'refs/heads/main', 0, n, n]
  })
  for (let at = 0; at < rows.length; at += 1000)
    await database.execute(
      `INSERT INTO job (id, namespace, pipeline, commit_id, n, name, ref, priority, created_at_ms, updated_at_ms)
       VALUES ?`,
      [rows.slice(at, at + 1000)],
    )
  for (const [index, phase] of phases.entries()) {
    const id = rows[index]?.[0] ?? 0
    const slot = [namespace, pipeline, id, id]
    if (phase === 'Running')
      await database.execute(
        "INSERT INTO slot (namespace, pipeline, slot, job_id, worker, token, poll_id) VALUES (?, ?, ?, ?, 1, '1-x', ?)",
        [...slot, id],
      )
    else if (phase === 'Queued' && Number(id) % 2 === 0)
      await database.execute('INSERT INTO slot (namespace, pipeline, slot, job_id, poll_id) VALUES (?, ?, ?, ?, ?)', [
        ...slot,
        id,
      ])
    else if (phase === 'Queued') await database.execute('INSERT INTO blocked VALUES (?, ?, 0, ?, ?)', slot)
  }
  const over = phases.flatMap((phase, index) => (isOver(phase) ? [[rows[index]?.[0] ?? 0, phase, 1]] : []))
  for (let at = 0; at < over.length; at += 1000)
    await database.execute('INSERT INTO outcome (job_id, phase, updated_at_ms) VALUES ?', [over.slice(at, at + 1000)])
}
/** All pages: the names in order, and how many pages it took. */
async function all(query: Omit<HistoryQuery, 'beforeId'>) {
  const names: string[] = []
  let beforeId: number | undefined
  for (let pages = 1; ; pages++) {
    const { jobs, nextId } = await listJobs(database, { ...query, beforeId })
    assert.ok(jobs.length <= query.limit)
    names.push(...jobs.map(({ name }) => name))
    if (nextId === undefined) return { names, pages }
    beforeId = nextId
  }
}
const range = (from: number, to: number) => Array.from({ length: from - to + 1 }, (_, n) => `web-${from - n}`)

test.before.each(async () => {
  count = 0
  for (const table of ['job', 'job_log', 'kept_log', 'slot', 'blocked', 'outcome'])
    await database.execute(`DELETE FROM ${table}`)
})

test('pages hold each job once, the last first, and end', async () => {
  await insert(Array<BuildJobPhase>(120).fill('Succeeded'))
  for (const [limit, pages] of [
    [50, 3],
    [60, 2],
    [500, 1],
  ] as const)
    assert.equal(await all({ namespace: 'demo', limit }), { names: range(120, 1), pages })
  assert.equal(await all({ namespace: 'empty', limit: 50 }), { names: [], pages: 1 })
})

test('what is queued meanwhile disturbs no page that follows', async () => {
  await insert(Array<BuildJobPhase>(20).fill('Failed'))
  const first = await listJobs(database, { namespace: 'demo', limit: 10 })
  await insert(Array<BuildJobPhase>(5).fill('Queued'))
  const { jobs } = await listJobs(database, { namespace: 'demo', limit: 100, beforeId: first.nextId })
  assert.equal(
    jobs.map(({ name }) => name),
    range(10, 1),
  )
})

test('namespace, pipeline and phase are asked for together', async () => {
  await insert(['Failed', 'Succeeded', 'Queued', 'Failed'])
  await insert(['Failed', 'Queued'], { pipeline: 'api' })
  await insert(['Failed', 'Queued'], { namespace: 'other' })
  const names = async (query: object) => (await all({ namespace: 'demo', limit: 10, ...query })).names
  assert.equal(await names({ phase: 'Failed' }), ['api-5', 'web-4', 'web-1'])
  assert.equal(await names({ phase: 'Queued' }), ['api-6', 'web-3'])
  assert.equal(await names({ pipeline: 'web', phase: 'Failed' }), ['web-4', 'web-1'])
  assert.equal(await names({ pipeline: 'web', phase: 'Queued' }), ['web-3'])
  assert.equal(await names({ pipeline: 'none' }), [])
})

test('a phase that few have is found behind thousands of others, by pages that end', async () => {
  await insert(['Cancelled', 'Running', ...Array<BuildJobPhase>(11_000).fill('Succeeded')])
  assert.equal(await all({ namespace: 'demo', phase: 'Cancelled', limit: 10 }), { names: ['web-1'], pages: 3 })
  assert.equal(await all({ namespace: 'demo', phase: 'Running', limit: 10 }), { names: ['web-2'], pages: 1 })
  const page = await listJobs(database, { namespace: 'demo', phase: 'Succeeded', limit: 10 })
  assert.equal(
    page.jobs.map(({ name }) => name),
    range(11_002, 10_993),
  )
})

test('each unfinished phase is found, all together too', async () => {
  await insert(['Failed', 'Queued', 'Queued', 'Running', 'Replicating', 'Succeeded', 'Replicating', 'Running'])
  const names = async (phase: BuildJobPhase) => (await all({ namespace: 'demo', phase, limit: 1 })).names
  assert.equal(await names('Queued'), ['web-3', 'web-2'])
  assert.equal(await names('Running'), ['web-8', 'web-4'])
  assert.equal(await names('Replicating'), ['web-7', 'web-5'])
  const unfinished = (await unfinishedJobs(database)).map(({ name }) => name)
  assert.equal(unfinished.sort(), ['web-2', 'web-3', 'web-4', 'web-5', 'web-7', 'web-8'])
  const { jobs } = await listJobs(database, { namespace: 'demo', limit: 10 })
  assert.equal(
    jobs.map(({ phase }) => phase),
    ['Running', 'Replicating', 'Succeeded', 'Replicating', 'Running', 'Queued', 'Queued', 'Failed'],
  )
})

test('a log that was taken over once stays that one, however often it is said', async () => {
  await insert(['Failed'])
  const [job] = (await listJobs(database, { namespace: 'demo', limit: 1 })).jobs
  const jobId = job?.id ?? 0
  for (const [attempt, offset] of [
    [1, 0],
    [1, 5],
    [2, 0],
  ])
    await database.execute('INSERT INTO job_log VALUES (?, ?, ?, ?)', [jobId, attempt ?? 0, offset ?? 0, 'hello'])
  assert.equal(
    (await loggedAttempts(database, jobId)).map(({ attempt, parts, bytes }) => [attempt, parts, Number(bytes)]),
    [
      [2, 1, 5],
      [1, 2, 10],
    ],
  )
  const page = { offset: 0, firstByte: 0, gzipBytes: 30 }
  const pages = [
    { ...page, attempt: 1, textBytes: 10 },
    { ...page, attempt: 2, textBytes: 5, firstByte: 30 },
  ]
  const partly = await keepLog(database, jobId, { key: 'a', pages, parts: 2 }).catch((error) => error.code)
  assert.is(partly, 'Conflict', 'a part came that was not read')
  assert.is((await loggedAttempts(database, jobId)).length, 2)
  assert.is(await keepLog(database, jobId, { key: 'a', pages, parts: 3 }), true)
  assert.is(await keepLog(database, jobId, { key: 'a', pages, parts: 3 }), true, 'the answer was lost')
  assert.is(await keepLog(database, jobId, { key: 'b', pages: pages.slice(1), parts: 1 }), false)
  assert.equal(await keptObjects(database, [jobId]), ['a'])
  assert.equal(await keptPage(database, { jobId, attempt: 1, offset: 9 }), { ...pages[0], key: 'a' })
  assert.is(await keptPage(database, { jobId, attempt: 1, offset: 10 }), undefined)
})

test('only jobs that are over are forgotten, with all that is known of them', async () => {
  await insert(['Failed', 'Replicating', 'Queued', 'Succeeded'])
  const { jobs } = await listJobs(database, { namespace: 'demo', limit: 10 })
  const ids = jobs.map(({ id }) => id)
  for (const id of ids) await database.execute('INSERT INTO job_log VALUES (?, 1, 0, ?)', [id, 'x'])
  assert.is(await deleteJobs(database, ids), 2)
  const left = await listJobs(database, { namespace: 'demo', limit: 10 })
  assert.equal(
    left.jobs.map(({ phase }) => phase),
    ['Queued', 'Replicating'],
  )
  const rows = await database.query('SELECT DISTINCT job_id FROM job_log')
  assert.is(rows.length, 2)
})

test.run()
