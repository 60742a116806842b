/** The build queue beside what one would write first, on one server, in one run; exits 1 when a target is missed. */
import { join } from 'node:path'
import { Command } from 'commander'
import { Broker } from '../../../queue/broker.ts'
import { enqueue } from '../../../queue/enqueue.ts'
import { systemClock as clock } from '../../../runtime/clock.ts'
import { createLogger } from '../../../runtime/log.ts'
import { Database } from '../../../runtime/sql.ts'
import { startDatabase } from '../../parts/database.ts'
import { simulateDay } from './day.ts'
import { type Cost, idleWorkers, pollingWorkers } from './idle.ts'
import { claimOnce, type PlainQueue, plainQueue } from './plainQueue.ts'
import { seedJobs } from './seed.ts'

const { quick } = new Command('run')
  .description('Measures the build queue beside a plain table; prints each row with its ratio and target.')
  .option('--quick', 'under a minute, with rougher figures')
  .parse()
  .opts<{ quick?: boolean }>()

const seconds = quick ? 2 : 8
const waiting = quick ? 20_000 : 40_000
const log = createLogger('bench', 'silent')
const never = new AbortController().signal

await using server = await startDatabase({ own: true })
let missed = false

function row(what: string, ours: string, peer: string, ratio: number, target: { atLeast?: number; atMost?: number }) {
  const { atLeast, atMost } = target
  const ok = (atLeast === undefined || ratio >= atLeast) && (atMost === undefined || ratio <= atMost)
  missed ||= !ok
  const wanted = atLeast === undefined ? `≤ ${atMost}` : `≥ ${atLeast}`
  console.log(`${ok ? '✓' : '✗'} ${what}: ${ours}, beside ${peer}: ${ratio.toFixed(2)} (${wanted})`)
}

interface Measured {
  perSecond: number
  p50Ms: number
  p99Ms: number
}

/** As many workers as said, each claiming and finishing one job after the other, for some seconds or until none is left. */
async function measure(workers: number, turn: (worker: number, pollId: number) => Promise<number | undefined>) {
  const claimMs: number[] = []
  const beganMs = performance.now()
  let endedMs = beganMs
  const work = async (worker: number) => {
    for (let pollId = 1; performance.now() - beganMs < seconds * 1000; pollId++) {
      const tookMs = await turn(worker, pollId)
      if (tookMs === undefined) return
      claimMs.push(tookMs)
      endedMs = performance.now()
    }
  }
  const working = Promise.all(Array.from({ length: workers }, (_, worker) => work(worker)))
  await Promise.race([working, clock.sleep(seconds * 1000 + 1000, never)])
  const tookSeconds = (endedMs - beganMs) / 1000
  claimMs.sort((a, b) => a - b)
  const at = (share: number) => claimMs[Math.floor(claimMs.length * share)] ?? Number.NaN
  return { perSecond: claimMs.length / tookSeconds, p50Ms: at(0.5), p99Ms: at(0.99) } satisfies Measured
}

let schemas = 0
async function newQueue(): Promise<Database> {
  const database = new Database(await server.createSchema(`builds_${++schemas}`), { connectionLimit: 4 })
  await database.migrate(join(import.meta.dirname, '../../../queue/migrations'))
  return database
}

const claimer = (worker: number, pollId: number) => ({
  ...{ worker: `w${worker}`, pollId, probeUrl: 'http://127.0.0.1:1', probeSecret: 's'.repeat(32) },
})

/** Ours, as the hub's routes use it. */
async function ours(workers: number, history = 0): Promise<Measured> {
  await using database = await newQueue()
  await seedJobs(database, { waiting, history })
  const targetOf = () => ({
    regions: ['eu-west', 'us-east'],
    replicate: 'Always',
    url: 'x'.repeat(50),
    command: ['make'],
  })
  const broker = new Broker({ database, clock, log, targetOf })
  const stop = new AbortController()
  const brokering = broker.run(stop.signal)
  const measured = await measure(workers, async (worker, pollId) => {
    const askedMs = performance.now()
    const taken = await broker.ask(claimer(worker, pollId), { waitMs: 1000, signal: never })
    const tookMs = performance.now() - askedMs
    if (!taken) return undefined
    await broker.finish({ jobId: taken.job.id, token: taken.token }, { result: 'Built' })
    return tookMs
  })
  stop.abort()
  await brokering
  return measured
}

/** A plain table, a connection for each worker. */
async function plain(workers: number, kind: PlainQueue): Promise<Measured> {
  await using queue = await plainQueue(await server.createSchema(`plain_${++schemas}`), {
    kind,
    waiting,
    connections: workers,
  })
  return await measure(workers, () => claimOnce(queue, kind))
}

const rate = ({ perSecond, p99Ms }: Measured) => `${perSecond.toFixed(0)}/s (claim p99 ${p99Ms.toFixed(0)} ms)`

// Both sides' code is compiled by then.
await ours(50)

for (const [workers, least] of [
  [50, 8],
  [200, 25],
] as const) {
  const mine = await ours(workers)
  const forUpdate = await plain(workers, 'for update')
  const skipLocked = await plain(workers, 'skip locked')
  const what = `${workers} workers, jobs claimed and finished`
  row(`${what}, FOR UPDATE`, rate(mine), rate(forUpdate), mine.perSecond / forUpdate.perSecond, { atLeast: least })
  row(`${what}, SKIP LOCKED`, rate(mine), rate(skipLocked), mine.perSecond / skipLocked.perSecond, { atLeast: 5 })
  if (workers === 200) row('200 workers, claim p99, ms', mine.p99Ms.toFixed(1), '50', mine.p99Ms / 50, { atMost: 1 })
}

{
  const history = quick ? 100_000 : 1_000_000
  const empty = await ours(50)
  const long = await ours(50, history)
  const slower = empty.perSecond / long.perSecond
  row(`${history} rows of history, 50 workers`, rate(long), `none, ${rate(empty)}`, slower, { atMost: 1.2 })
}

{
  await using database = await newQueue()
  const broker = new Broker({ database, clock, log })
  const stop = new AbortController()
  const brokering = broker.run(stop.signal)
  const tookMs: number[] = []
  for (let n = 1; n <= (quick ? 100 : 500); n++) {
    const asked = broker.ask(claimer(1, n), { waitMs: 5000, signal: never })
    await clock.sleep(Math.random() * 20, never)
    const commit = n.toString(16).padStart(12, '0').padEnd(40, '0')
    const pushedMs = performance.now()
    const queued = enqueue(database, {
      namespace: 'demo',
      pipeline: 'web',
      commit,
      ref: 'refs/heads/main',
      maxJobs: 9999,
    })
    void queued.then(() => broker.notify())
    await asked
    tookMs.push(performance.now() - pushedMs)
  }
  stop.abort()
  await brokering
  tookMs.sort((a, b) => a - b)
  const at = (share: number) => tookMs[Math.floor(tookMs.length * share)] ?? Number.NaN
  row('push to start on an idle worker, p50, ms', at(0.5).toFixed(1), '20', at(0.5) / 20, { atMost: 1 })
  row('push to start on an idle worker, p99, ms', at(0.99).toFixed(1), '100', at(0.99) / 100, { atMost: 1 })
}

{
  const forMs = quick ? 12_000 : 30_000
  await using database = await newQueue()
  const mine = await idleWorkers(database, { workers: 2000, probeEveryMs: forMs, log })
  const polling = await pollingWorkers(await server.createSchema('polling'), database, { workers: 2000, forMs })
  const what = `2000 idle workers, probed every ${forMs / 1000} s`
  const cost = ({ cores }: Cost) => `${(100 * cores).toFixed(1)} %`
  row(`${what}, of a core`, cost(mine), `polling SQL each second, ${cost(polling)}; 10 %`, mine.cores / 0.1, {
    atMost: 1,
  })
  const statements = (of: Cost) => `${of.statementsPerSecond.toFixed(1)}/s`
  const many = `${statements(polling)}; 20/s`
  row(`${what}, statements`, statements(mine), many, mine.statementsPerSecond / 20, { atMost: 1 })
}

{
  const minute = 60_000
  const day = { seed: 1, builds: 5000, meanBuildMs: 14.4 * minute }
  const policy = { targetWaitMs: 30_000, startMs: 45_000, coolDownMs: 3 * minute }
  const scaled = simulateDay({ ...day, fleet: { ...policy, classes: [{ name: 'all', min: 2, max: 1000, on: true }] } })
  let [few, enough] = [1, 1000]
  while (few < enough) {
    const fleet = Math.floor((few + enough) / 2)
    if (simulateDay({ ...day, fleet }).p95WaitMs <= scaled.p95WaitMs) enough = fleet
    else few = fleet + 1
  }
  const fixed = simulateDay({ ...day, fleet: enough })
  const what = `a simulated day of ${scaled.builds} builds`
  const hours = ({ workerHours }: { workerHours: number }) => `${workerHours.toFixed(0)} worker-hours`
  const waited = (scaled.p95WaitMs / 1000).toFixed(1)
  row(`${what}, wait p95, s`, waited, '60', scaled.p95WaitMs / minute, { atMost: 1 })
  const sum = `${scaled.buildHours.toFixed(0)} h of building`
  row(what, hours(scaled), sum, scaled.workerHours / scaled.buildHours, { atMost: 1.25 })
  const others = `${enough} workers all day with the same wait, ${hours(fixed)}`
  row(what, hours(scaled), others, scaled.workerHours / fixed.workerHours, { atMost: 0.5 })
}

process.exitCode = missed ? 1 : 0
