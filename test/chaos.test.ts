import { readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { createConnection } from 'mysql2/promise'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { random } from '../hack/bench/queue/day.ts'
import { startDatabase } from '../hack/parts/database.ts'
import { freePort, startProgram, temporaryDir, until } from '../hack/parts/process.ts'
import { enqueue } from '../queue/enqueue.ts'
import { systemClock as clock } from '../runtime/clock.ts'
import { Database } from '../runtime/sql.ts'

// timeout: 1200 s
const test = suite('the queue under fire')

/** The same seed gives the same faults at the same times; what they meet is up to the machine. */
const seed = Number(process.env.SHOAL_CHAOS_SEED ?? Math.floor(Math.random() * 2 ** 31))
console.log(`  SHOAL_CHAOS_SEED=${seed}`)
/** All of it: SHOAL_CHAOS_JOBS=2000 ./hack/test test/chaos.test.ts. */
const jobs = Number(process.env.SHOAL_CHAOS_JOBS ?? 700)
const { workers, pipelines, forMs } = { workers: 30, pipelines: 8, forMs: 20 * jobs }
const leaseMs = 3000

/** Every pipeline has another concurrency.max: 1, 2, 4 … 128. */
const maxJobs = (pipeline: number) => 2 ** pipeline

test('every job ends once, in order, whatever is killed, frozen, cut off, answered to nobody or restarted', async () => {
  await using stack = new AsyncDisposableStack()
  const server = stack.use(await startDatabase({ own: true }))
  const { path: dir } = stack.use(await temporaryDir('shoal-chaos'))
  const url = await server.createSchema('builds')
  const database = stack.use(new Database(url))
  await database.migrate(join(import.meta.dirname, '../queue/migrations'))
  const journal = join(dir, 'journal')
  await writeFile(journal, '')
  const next = random(seed)
  const upTo = (most: number) => Math.floor(next() * most)
  const pick = <T>(from: T[]): T => from[upTo(from.length)] as T

  const ports = [await freePort(), await freePort(), await freePort()]
  const start = (file: string, name: string, env: Record<string, string>) =>
    stack.use(
      startProgram(process.execPath, [join(import.meta.dirname, 'chaos', file)], {
        name,
        logFile: join(dir, name),
        env,
      }),
    )
  let started = 0
  const startHub = (port: number) =>
    start('hub.ts', `hub-${port}`, {
      CHAOS_DATABASE: url,
      CHAOS_PORT: String(port),
      CHAOS_LEASE_MS: String(leaseMs),
      CHAOS_SEED: String(seed + ++started),
    })
  const startWorker = () => {
    const name = `w${++started}`
    return start('worker.ts', name, {
      CHAOS_NAME: name,
      CHAOS_HUBS: ports.map((port) => `http://127.0.0.1:${port}`).join(','),
      CHAOS_JOURNAL: journal,
      CHAOS_BUILD_MS: '800',
    })
  }
  const hubs = ports.map(startHub)
  const farm = Array.from({ length: workers }, startWorker)

  const pushing = (async () => {
    for (let n = 0; n < jobs; n++) {
      // The fewer may run at once, the fewer there are.
      const pipeline = Math.floor(pipelines * Math.sqrt(next()))
      const job = { namespace: 'demo', pipeline: `p${pipeline}`, ref: 'refs/heads/main', maxJobs: maxJobs(pipeline) }
      const commit = n.toString(16).padStart(12, '0').padEnd(40, '0')
      await again(() => enqueue(database, { ...job, commit }))
      await clock.sleep((forMs / jobs) * 0.6)
    }
  })()

  const faults: Record<string, () => Promise<void>> = {
    'kill a worker': async () => {
      const at = upTo(farm.length)
      await farm[at]?.kill()
      farm[at] = startWorker()
    },
    'freeze a worker': async () => {
      const worker = pick(farm)
      await worker.pause()
      void clock.sleep(300 + upTo(3 * leaseMs)).then(() => worker.resume())
    },
    'a worker that answers no probe': async () => pick(farm).signal('SIGUSR2'),
    'kill a hub': async () => {
      const at = upTo(hubs.length)
      await hubs[at]?.kill()
      hubs[at] = startHub(ports[at] as number)
    },
    'cut connections of the hubs': () => asAdministrator(server.url('builds'), cutConnections),
    'deadlock, or wait for a lock in vain': () =>
      asAdministrator(server.url('builds'), (connection) => lockAgainstTheOrder(connection, pick([1200, 200]))),
  }
  const happened = new Map<string, number>()
  const begunMs = clock.monotonic()
  let restarts = 0
  while (clock.monotonic() - begunMs < forMs) {
    await clock.sleep(100 + upTo(500))
    if (clock.monotonic() - begunMs > ((restarts + 1) * forMs) / 3 && restarts < 2) {
      restarts++
      await server.kill()
      await clock.sleep(upTo(1000))
      await server.start()
      continue
    }
    const fault = pick([...Object.keys(faults), 'freeze a worker'])
    happened.set(fault, (happened.get(fault) ?? 0) + 1)
    await faults[fault]?.().catch((error: unknown) => console.log(`  ${fault}: ${String(error)}`))
  }
  await pushing
  console.log(
    `  ${[...happened].map(([fault, times]) => `${fault}: ${times}`).join('; ')}; database killed: ${restarts}`,
  )

  const open = async () => {
    const [row] = await database.query<{ n: number }>(
      'SELECT COUNT(*) AS n FROM job WHERE id NOT IN (SELECT job_id FROM outcome)',
    )
    return row?.n ?? Number.NaN
  }
  await until('every job is over', async () => (await open()) === 0, { timeoutMs: 150_000, intervalMs: 500 })

  const rows = await database.query<{
    id: number
    pipeline: string
    phase: string
    code: string | null
    token: string | null
    lost: number
    handedBack: number
    startedAtMs: number
  }>(
    `SELECT id, pipeline, phase, code, token, lost_workers AS lost, handed_back AS handedBack, started_at_ms AS startedAtMs
     FROM job JOIN outcome ON outcome.job_id = job.id ORDER BY id`,
  )
  assert.is(rows.length, jobs)
  const accepted = new Map<number, Set<string>>()
  for (const line of (await readFile(journal, 'utf8')).trim().split('\n')) {
    const [id = '', token = ''] = line.split(' ')
    accepted.set(Number(id), (accepted.get(Number(id)) ?? new Set()).add(token))
  }
  for (const { id, phase, code, token, lost } of rows) {
    const tokens = [...(accepted.get(id) ?? [])]
    if (phase === 'Replicating')
      assert.ok(
        tokens.every((one) => one === token),
        `job ${id}: ${tokens} beside ${token}`,
      )
    else assert.equal({ phase, code, lost, tokens }, { phase: 'Failed', code: 'WorkerLost', lost: 3, tokens: [] })
  }
  for (const table of ['ready', 'blocked', 'slot'])
    assert.equal(await database.query(`SELECT * FROM ${table}`), [], table)
  // Those that were never given back began in the order of their pushes, but for what was claimed at the same time.
  for (let pipeline = 0; pipeline < pipelines; pipeline++) {
    const calm = rows.filter((row) => row.pipeline === `p${pipeline}` && row.lost + row.handedBack === 0)
    let latest = 0
    for (const { id, startedAtMs } of calm) {
      assert.ok(startedAtMs >= latest - 2000, `job ${id} of p${pipeline} began ${latest - startedAtMs} ms too early`)
      latest = Math.max(latest, startedAtMs)
    }
  }
  const built = rows.filter(({ phase }) => phase === 'Replicating').length
  const lost = rows.reduce((sum, row) => sum + row.lost, 0)
  console.log(`  ${built} built, ${jobs - built} failed as WorkerLost; ${lost} workers lost with a job`)
  assert.ok(lost > 0, 'nothing happened to any job')
})

/** Where the database is down, again: a webhook's sender and the poll do the same. */
async function again<T>(work: () => Promise<T>): Promise<T> {
  for (;;) {
    try {
      return await work()
    } catch {
      await clock.sleep(200)
    }
  }
}

type Administrator = Awaited<ReturnType<typeof createConnection>>

async function asAdministrator(url: string, work: (connection: Administrator) => Promise<void>): Promise<void> {
  const connection = await createConnection({ uri: url, multipleStatements: true })
  try {
    await work(connection)
  } finally {
    connection.destroy()
  }
}

async function cutConnections(connection: Administrator): Promise<void> {
  const [rows] = await connection.query("SELECT id FROM information_schema.processlist WHERE user = 'builds'")
  for (const { id, ID } of rows as { id?: number; ID?: number }[])
    await connection.query(`KILL ${id ?? ID}`).catch(() => undefined)
}

/** Holds what finishing locks last, and asks for what it locks first. */
async function lockAgainstTheOrder(connection: Administrator, forMs: number): Promise<void> {
  await connection.query('SET GLOBAL innodb_lock_wait_timeout = 1; SET innodb_lock_wait_timeout = 1')
  await connection.query('START TRANSACTION; SELECT * FROM pipeline FOR UPDATE')
  await clock.sleep(forMs)
  await connection
    .query('SELECT job.id FROM slot JOIN job ON job.id = slot.job_id WHERE worker > 0 FOR UPDATE')
    .catch(() => undefined)
  await connection.query('ROLLBACK').catch(() => undefined)
}

test.run()
