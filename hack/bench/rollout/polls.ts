import { setTimeout as delay } from 'node:timers/promises'
import { end, message } from './crowd.ts'
import { FleetServers, type Started } from './fleetServers.ts'
import { footprintOf, watchFootprints } from './footprint.ts'
import { figure, percentile, row, seconds } from './rows.ts'

/** Fleet servers and their machines: held polls of a few, of more and of many, then plain polls as fast as one can. */
export async function polls(crowds: number[], { quick = false } = {}): Promise<void> {
  await using servers = await FleetServers.prepare()
  for (const machines of crowds) await held(servers, { machines, quick, last: machines === crowds.at(-1) })
  await plain(servers, { quick })
}

const namesOf = (machines: number) => Array.from({ length: machines }, (_, at) => `machine-${at}`)

async function held(
  servers: FleetServers,
  { machines, quick, last }: { machines: number; quick: boolean; last: boolean },
): Promise<void> {
  const names = namesOf(machines)
  const { process: server, port } = await servers.start(names, { holdMs: 15_000 })
  const empty = footprintOf(server.pid)
  const half = Math.ceil(machines / 2)
  const beganMs = performance.now()
  const crowds = await Promise.all(
    [names.slice(0, half), names.slice(half)].map((some) => servers.poll(some, { port, waitMs: 15_000 })),
  )
  await Promise.all(crowds.map((child) => message(child, 'connected')))
  const connectedMs = performance.now() - beganMs
  await delay(quick ? 2000 : 5000)
  const watched = watchFootprints(new Map([['server', server.pid ?? 0]]))
  await delay(quick ? 4000 : 20_000)
  const { megabytes = 0, cores = 0 } = watched().get('server') ?? {}
  const whole = empty.megabytes + ((megabytes - empty.megabytes) / machines) * 20_000
  const footprint = `${Math.round(megabytes)} MB resident, ${Math.round(cores * 100)} % of a core; connected in ${seconds(connectedMs)}`
  const what = `${machines} held polls over TLS`
  if (last) row(what, `${footprint}; ${Math.round(whole)} MB for 20,000`, whole <= 1200, '≤ 1,200 MB for 20,000')
  else figure(what, footprint)
  const told = Promise.all(crowds.map((child) => message(child, 'told', ({ revision }) => revision === 2)))
  const saidMs = Date.now()
  server.send(2)
  const atMs = (await told).flatMap((each) => each.atMs).map((at) => at - saidMs)
  row(
    `a goal put at the fleet server to ${machines} machines that it holds`,
    `half of them know in ${seconds(percentile(atMs, 0.5))}, 99 % in ${seconds(percentile(atMs, 0.99))}, the last in ${seconds(Math.max(...atMs))}`,
    percentile(atMs, 0.99) <= 10_000,
    'within a plain poll, 10 s',
  )
  for (const child of crowds) await end(child)
  await end(server)
}

async function plain(servers: FleetServers, { quick }: { quick: boolean }): Promise<void> {
  const names = namesOf(2000)
  /** Polls a second and core of the server, and a second. */
  const ask = async ({ process: server, port }: Started) => {
    const pollers = await servers.poll(names, { port, waitMs: 0, connections: 400 })
    await message(pollers, 'connected')
    await delay(4000)
    const before = await message(pollers, 'polls')
    const { cpuMs } = footprintOf(server.pid)
    const fromMs = performance.now()
    await delay(quick ? 4000 : 8000)
    const after = await message(pollers, 'polls')
    const count = after.count - before.count
    const perCore = count / ((footprintOf(server.pid).cpuMs - cpuMs) / 1000)
    const rate = count / ((performance.now() - fromMs) / 1000)
    await end(pollers)
    await end(server)
    return { perCore, rate }
  }
  const { perCore, rate } = await ask(await servers.start(names, { holdMs: 0 }))
  const bare = await ask(await servers.startBare())
  row(
    'plain polls over TLS, with what they report in the database',
    `${Math.round(perCore)} a second and core of the server; ${Math.round(rate)} a second on this machine, database and machines beside it; a server of Node's own that only answers ${Math.round(bare.perCore)}, ${(perCore / bare.perCore).toFixed(2)} of it`,
    perCore >= 8000,
    '≥ 8,000',
  )
}
