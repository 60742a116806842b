/** What workers that wait for work cost the hub, beside as many that poll the database themselves. */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { Broker } from '../../../queue/broker.ts'
import { HealthChecker } from '../../../queue/healthChecker.ts'
import { systemClock as clock } from '../../../runtime/clock.ts'
import type { Logger } from '../../../runtime/log.ts'
import { Metrics } from '../../../runtime/metrics.ts'
import type { Database } from '../../../runtime/sql.ts'
import { claimOnce, type PlainQueue, plainQueue } from './plainQueue.ts'

export interface Cost {
  /** Of this process: 1 is a whole core. */
  cores: number
  statementsPerSecond: number
}

const probeSecret = 's'.repeat(32)

/** `workers` that ask the broker again and again, and are probed, each from a process of their own. */
export async function idleWorkers(
  database: Database,
  { workers, probeEveryMs, log }: { workers: number; probeEveryMs: number; log: Logger },
): Promise<Cost> {
  const answering = spawn(process.execPath, [import.meta.filename], { stdio: ['ignore', 'pipe', 'inherit'] })
  const [port] = await once(answering.stdout, 'data')
  const stop = new AbortController()
  const { signal } = stop
  const leaseMs = 60_000
  const broker = new Broker({ database, clock, log })
  const checker = new HealthChecker({
    ...{ database, leaseMs, log, metrics: new Metrics(), intervalMs: probeEveryMs },
  })
  const asking = new Set<AbortController>()
  const worker = async (name: string) => {
    for (let pollId = 1; !signal.aborted; pollId++) {
      const probeUrl = `http://127.0.0.1:${String(port).trim()}/${name}`
      const waitMs = 10_000 * (0.8 + 0.2 * Math.random())
      // As a request has one.
      const hungUp = new AbortController()
      asking.add(hungUp)
      await broker.ask({ worker: name, pollId, probeUrl, probeSecret }, { waitMs, signal: hungUp.signal })
      asking.delete(hungUp)
    }
  }
  const running = [broker.run(signal), ...Array.from({ length: workers }, (_, n) => worker(`w${n}`))]
  await clock.sleep(2000, signal)
  const cost = measureCost(database, probeEveryMs)
  running.push(checker.run(signal))
  const measured = await cost
  stop.abort()
  for (const hungUp of asking) hungUp.abort()
  await Promise.all(running)
  answering.kill()
  return measured
}

/** The same number, each with a claim of its own every second. */
export async function pollingWorkers(
  url: string,
  database: Database,
  { workers, forMs }: { workers: number; forMs: number },
): Promise<Cost> {
  const kind: PlainQueue = 'skip locked'
  await using queue = await plainQueue(url, { kind, waiting: 0, connections: 50 })
  const stop = new AbortController()
  const worker = async () => {
    await clock.sleep(Math.random() * 1000, stop.signal).catch(() => undefined)
    while (!stop.signal.aborted) {
      await claimOnce(queue, kind)
      await clock.sleep(1000, stop.signal).catch(() => undefined)
    }
  }
  const running = Array.from({ length: workers }, worker)
  const measured = await measureCost(database, forMs)
  stop.abort()
  await Promise.all(running)
  return measured
}

async function measureCost(database: Database, forMs: number): Promise<Cost> {
  const questions = async () => {
    const [row] = await database.query<{ Value: string }>("SHOW GLOBAL STATUS LIKE 'Questions'")
    return Number(row?.Value)
  }
  const before = await questions()
  const cpu = process.cpuUsage()
  const beganMs = performance.now()
  await clock.sleep(forMs)
  const { user, system } = process.cpuUsage(cpu)
  const tookMs = performance.now() - beganMs
  return {
    cores: (user + system) / 1000 / tookMs,
    statementsPerSecond: ((await questions()) - before) / (tookMs / 1000),
  }
}

if (import.meta.main) {
  const server = createServer(({ url = '' }, answer) => {
    const [, worker] = url.split('/')
    answer.setHeader('content-type', 'application/json')
    answer.end(JSON.stringify({ worker, lastPollId: 0, held: [] }))
  })
  server.listen(0, '127.0.0.1', () => console.log((server.address() as AddressInfo).port))
}
