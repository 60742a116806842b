import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import { writeFile } from 'node:fs/promises'
import { type AddressInfo, connect, createServer } from 'node:net'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { Agent, request } from 'undici'
import { Pipeline } from '../../../api/pipeline.ts'
import { systemClock } from '../../../runtime/clock.ts'
import { rounds } from '../../../runtime/rounds.ts'
import { Database } from '../../../runtime/sql.ts'
import { bringUp } from '../../../test/system.ts'
import { until } from '../../parts/process.ts'
import { pipeline } from '../../story/objects.ts'
import { pushAndBuild } from '../../story/push.ts'
import { addHook, commit, push } from '../../story/repositories.ts'
import type { System } from '../../story/system.ts'
import { kubectlApply, versionOf } from './deploy.ts'
import { percentile, row, seconds } from './rows.ts'

const withinMs = 10_000
/** From one kill to the next. */
const everyMs = 20_000
/** How long a process that died is away, as under a kubelet. */
const awayMs = 2000

/**
 * Every process is killed in turn, again and again, and comes back after two seconds, while pushes and deploys go on. There
 * are two hubs behind one address, as behind a Service, and one of each other.
 */
export async function availability(minutes: number): Promise<void> {
  const regions = ['eu-west', 'us-east']
  await using up = await bringUp({ regions }, { ownServers: ['us-east'], hubs: 2 })
  const { state } = up.system
  const first = await up.explain(async () =>
    pushAndBuild({ state, cluster: up.kube, progress: up.progress }, await commit(state.repositories.app, 'First')),
  )
  await using hubs = await oneAddress(state.hub.urls, readFileSync(state.hub.ca, 'utf8'))
  const { bare } = state.repositories.app
  const url = `https://127.0.0.1:${hubs.port}/webhooks/${state.namespace}/web`
  await addHook(bare, { url, secretFile: state.webhook.secretFile, caFile: state.hub.ca })
  // What no webhook could be told of is found by looking.
  await up.kube.cluster.apply(Pipeline, pipeline(state, { pollInterval: '10s' }), { fieldManager: 'demo' })
  await using builds = new Database(state.databaseUrl)

  const stop = new AbortController()
  const endMs = performance.now() + minutes * 60_000
  const killing = killInTurn(up.system, stop.signal)
  const good = new Map<number, boolean>()
  const took: { pushes: number[]; deploys: number[] } = { pushes: [], deploys: [] }
  for (let n = 1; performance.now() < endMs; n++) {
    const minute = Math.floor((endMs - performance.now()) / 60_000)
    const [pushedMs, deployedMs] = await Promise.all([
      queued(state.repositories.app, builds, n),
      untilTrue(performance.now(), () => kubectlApply(state, versionOf(state, first.metadata.name, n))),
    ])
    took.pushes.push(pushedMs)
    took.deploys.push(deployedMs)
    good.set(minute, (good.get(minute) ?? true) && pushedMs <= withinMs && deployedMs <= withinMs)
    await delay(8000)
  }
  stop.abort()
  const kills = await killing
  const share = [...good.values()].filter(Boolean).length / good.size
  const slowest = (values: number[]) => `99 % within ${seconds(percentile(values, 0.99))}`
  row(
    `${good.size} minutes in which ${kills} times one process was killed: those in which each push was queued and each deploy accepted within 10 s`,
    `${(share * 100).toFixed(1)} %; pushes ${slowest(took.pushes)}, deploys ${slowest(took.deploys)}`,
    share >= 0.999,
    '≥ 99.9 %',
  )
}

/** As a Service with a readiness probe every half second: whoever connects gets one that is ready and takes connections. */
async function oneAddress(urls: string[], ca: string) {
  const dispatcher = new Agent({ connect: { ca } })
  const ready = new Set<string>()
  const stop = new AbortController()
  const probe = async (url: string) => {
    const answer = await request(`${url}/readyz`, { dispatcher, signal: AbortSignal.timeout(1000) })
    await answer.body.dump()
    if (answer.statusCode === 200) ready.add(url)
    else ready.delete(url)
  }
  const probing = rounds(() => Promise.all(urls.map((url) => probe(url).catch(() => ready.delete(url)))), {
    ...{ everyMs: 500, clock: systemClock, signal: stop.signal, failed: () => undefined },
  })
  const server = createServer((client) => {
    client.on('error', () => undefined)
    const tryNext = ([url, ...rest]: string[]) => {
      if (url === undefined) return client.destroy()
      const upstream = connect(Number(new URL(url).port), '127.0.0.1')
      let connected = false
      upstream.once('connect', () => {
        connected = true
        client.pipe(upstream).pipe(client)
        client.once('close', () => upstream.destroy())
      })
      upstream.on('error', () => (connected ? client.destroy() : tryNext(rest)))
      return undefined
    }
    tryNext([...ready])
  }).listen(0, '127.0.0.1')
  await once(server, 'listening')
  const { port } = server.address() as AddressInfo
  return {
    port,
    async [Symbol.asyncDispose]() {
      server.close()
      stop.abort()
      await probing
      await dispatcher.destroy()
    },
  }
}

async function killInTurn(system: System, signal: AbortSignal): Promise<number> {
  const names = [...system.programs.keys()].filter((name) => !name.startsWith('worker'))
  const parts = [
    ...names.map((name) => ({
      kill: async () => system.programs.get(name)?.kill(),
      start: () => system.startAgain(name),
    })),
    system.database,
    system.hubServer,
    ...system.regionServers.values(),
    ...system.stores.values(),
  ]
  let kills = 0
  while (!signal.aborted) {
    const part = parts[kills % parts.length]
    const next = delay(everyMs, undefined, { signal }).catch(() => undefined)
    await part?.kill()
    kills++
    await delay(awayMs)
    await part?.start()
    await next
  }
  return kills
}

/** How long until a push is a row of the queue; endless when that takes thrice as long as it may. */
async function queued(app: Parameters<typeof push>[0], builds: Database, n: number): Promise<number> {
  await writeFile(join(app.work, 'VERSION'), `${n}\n`)
  const id = await commit(app, `Push ${n}`)
  const beganMs = performance.now()
  await push(app)
  return untilTrue(beganMs, async () => {
    const rows = await builds.query('SELECT 1 FROM job WHERE commit_id = ? LIMIT 1', [id])
    return rows.length > 0
  })
}

async function untilTrue(beganMs: number, look: () => Promise<boolean>): Promise<number> {
  const waited = until('it is so', look, { timeoutMs: 3 * withinMs, intervalMs: 200 })
  return waited.then(
    () => performance.now() - beganMs,
    () => Number.POSITIVE_INFINITY,
  )
}
