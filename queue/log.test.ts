import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { Fenced } from '../api/errors.ts'
import { keptLogBytes } from '../api/workerApi.ts'
import { startDatabase } from '../hack/parts/database.ts'
import { Database } from '../runtime/sql.ts'
import { claim } from './claim.ts'
import { enqueue } from './enqueue.ts'
import { requeueLost } from './lease.ts'
import { appendLog, logParts } from './log.ts'

const test = suite('logs in the queue')
const server = await startDatabase()
const database = new Database(await server.createSchema('builds'))
await database.migrate(join(import.meta.dirname, 'migrations'))
test.after(async () => {
  await database[Symbol.asyncDispose]()
  await server[Symbol.asyncDispose]()
})

let count = 0
/** A job, claimed. */
async function take() {
  const commit = (++count).toString(16).padStart(12, '0').padEnd(40, '0')
  await enqueue(database, { namespace: 'demo', pipeline: 'web', commit, ref: 'refs/heads/main', maxJobs: 1000 })
  return claimNext()
}
async function claimNext() {
  const claimer = { worker: 'w', pollId: ++count, probeUrl: 'http://127.0.0.1:1', probeSecret: 's'.repeat(32) }
  const taken = await claim(database, claimer)
  assert.ok(taken)
  return { jobId: taken.job.id, token: taken.token }
}
const partsOf = async (jobId: number, attempt = 1, offset = 0) =>
  (await logParts(database, { jobId, attempt, offset })).map((part) => [part.offset, part.text.toString()])
const total = async (jobId: number) => {
  let [bytes, parts, offset] = [0, 0, 0]
  for (;;) {
    const page = await logParts(database, { jobId, attempt: 1, offset })
    if (page.length === 0) return { bytes, parts, end: offset }
    for (const part of page) {
      bytes += part.text.length
      offset = part.offset + part.text.length
    }
    parts += page.length
  }
}

test('parts come in order; one that is repeated is kept once, one that comes late or overlaps is not', async () => {
  const held = await take()
  await appendLog(database, held, 0, 'one ')
  await appendLog(database, held, 4, 'two ')
  await appendLog(database, held, 4, 'two ')
  await appendLog(database, held, 0, 'one ')
  await appendLog(database, held, 2, 'xx')
  await appendLog(database, held, 7, 'x')
  await appendLog(database, held, 20, 'later, é')
  const all = [
    [0, 'one '],
    [4, 'two '],
    [20, 'later, é'],
  ]
  assert.equal(await partsOf(held.jobId), all)
  assert.equal(await partsOf(held.jobId, 1, 4), all.slice(1))
  assert.equal(await partsOf(held.jobId, 1, 8), all.slice(2))
  assert.equal(await partsOf(held.jobId, 1, 29), [])
})

test('each attempt has a log of its own, and a lost worker adds nothing to it', async () => {
  const first = await take()
  await appendLog(database, first, 0, 'first')
  await requeueLost(database, first)
  const second = await claimNext()
  assert.is(second.jobId, first.jobId)
  await appendLog(database, second, 0, 'second')
  await appendLog(database, first, 5, ' late').then(
    () => assert.unreachable(),
    (error) => assert.instance(error, Fenced),
  )
  assert.equal(await partsOf(first.jobId, 1), [[0, 'first']])
  assert.equal(await partsOf(first.jobId, 2), [[0, 'second']])
})

test('nothing comes after the end, also when both happen at once', async () => {
  const held = await take()
  // The end has begun, and is there only after the part was to be kept.
  const racing = new Proxy(database, {
    get: (target, property) =>
      property === 'execute'
        ? async (...args: Parameters<Database['execute']>) => {
            const [begun, ending] = [Promise.withResolvers<void>(), Promise.withResolvers<void>()]
            const ended = target.transaction(async (sql) => {
              await sql.execute('DELETE FROM slot WHERE job_id = ?', [held.jobId])
              begun.resolve()
              await ending.promise
            })
            await begun.promise
            const kept = target.execute(...args)
            await Promise.race([kept, target.query('DO SLEEP(0.3)')])
            ending.resolve()
            await ended
            return kept
          }
        : Reflect.get(target, property).bind?.(target),
  })
  const refused = await appendLog(racing, held, 0, 'late').catch((error) => error)
  assert.instance(refused, Fenced)
  assert.equal(await partsOf(held.jobId), [])
})

test('of a long log head and tail stay, however long it gets', async () => {
  const held = await take()
  const { head, tail } = keptLogBytes
  const chunk = 'x'.repeat(256 << 10)
  const sizes = new Set<number>()
  for (let offset = 0; offset < 3 * (head + tail); offset += chunk.length) {
    await appendLog(database, held, offset, chunk)
    if (offset > head + 2 * tail && offset % (2 << 20) === 0) sizes.add((await total(held.jobId)).bytes)
  }
  const { bytes, end } = await total(held.jobId)
  assert.is(end, 3 * (head + tail))
  assert.ok(bytes >= head + tail && bytes <= head + tail + 2 * chunk.length, `${bytes} bytes`)
  assert.ok(Math.max(...sizes) <= head + tail + 2 * chunk.length)
  const parts = (await logParts(database, { jobId: held.jobId, attempt: 1, offset: 0 })).length
  assert.is(parts, 2, 'a page is bounded')
})

test.run()
