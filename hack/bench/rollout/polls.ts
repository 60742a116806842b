import { fork } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { createAuthority, createServerCertificate } from '../../../runtime/certificates.ts'
import { generateSigningKey } from '../../../runtime/dsse.ts'
import { startDatabase } from '../../parts/database.ts'
import { freePort, temporaryDir } from '../../parts/process.ts'
import { end, enrolAll, message, startPollers } from './crowd.ts'
import type { PollersSettings } from './pollers.ts'
import { percentile, row, seconds } from './rows.ts'
import { benchGoal, type ServerSettings } from './server.ts'

const allocator = {
  ...{ MALLOC_ARENA_MAX: '2', MALLOC_MMAP_THRESHOLD_: '12288', MALLOC_TRIM_THRESHOLD_: '262144', MALLOC_TOP_PAD_: '0' },
}

/** One fleet server and its machines: as many held polls as there are machines, then plain polls as fast as it can. */
export async function polls(machines: number, { quick = false } = {}): Promise<void> {
  const lookMs = quick ? 4000 : 20_000
  await using stack = new AsyncDisposableStack()
  const dir = stack.use(await temporaryDir('shoal-polls')).path
  const authority = await createAuthority('bench')
  const { certificate, key } = await createServerCertificate(authority, ['127.0.0.1'])
  const tls = { certFile: join(dir, 'tls.crt'), keyFile: join(dir, 'tls.key') }
  await writeFile(tls.certFile, certificate)
  await writeFile(tls.keyFile, key)
  const mariadb = stack.use(await startDatabase({ own: true }))
  const databaseUrl = await mariadb.createSchema('fleet')
  const hub = generateSigningKey()
  const machine = generateSigningKey()
  const names = Array.from({ length: machines }, (_, at) => `machine-${at}`)
  const startServer = async (port: number, holdMs: number) => {
    const settings: ServerSettings = { databaseUrl, port, tls, signingKey: hub.privateKeyPem, holdMs }
    // As bin/shoal and manifests/region start one.
    const child = fork(join(import.meta.dirname, 'server.ts'), [JSON.stringify(settings)], {
      stdio: ['ignore', 'inherit', 'inherit', 'ipc'],
      execArgv: ['--max-semi-space-size=8'],
      env: { ...process.env, ...allocator },
    })
    stack.defer(() => end(child))
    await new Promise((resolve) => child.once('message', resolve))
    return child
  }
  const machinesOf = async (some: string[], more: Pick<PollersSettings, 'port' | 'waitMs' | 'connections'>) => {
    const child = await startPollers(dir, {
      ...{ region: 'eu', ca: authority.certificate, machineKey: machine.privateKeyPem, names: some },
      ...{ running: benchGoal(1).templateHash, ...more },
    })
    stack.defer(() => end(child))
    return child
  }

  const port = await freePort()
  const server = await startServer(port, 15_000)
  await enrolAll(databaseUrl, names, machine.publicKeyPem)
  const emptyMegabytes = residentMegabytes(server.pid)
  const half = Math.ceil(machines / 2)
  const beganMs = performance.now()
  const crowds = await Promise.all(
    [names.slice(0, half), names.slice(half)].map((some) => machinesOf(some, { port, waitMs: 15_000 })),
  )
  await Promise.all(crowds.map((child) => message(child, 'connected')))
  const connectedMs = performance.now() - beganMs
  await settle(quick ? 2000 : 5000)
  const cpuMs = cpuMsOf(server.pid)
  await settle(lookMs)
  const cpuShare = (cpuMsOf(server.pid) - cpuMs) / lookMs
  const megabytes = residentMegabytes(server.pid)
  const whole = emptyMegabytes + ((megabytes - emptyMegabytes) / machines) * 20_000
  row(
    `${machines} held polls over TLS`,
    `${Math.round(megabytes)} MB resident (${Math.round(whole)} for 20,000), ${Math.round(cpuShare * 100)} % of a core; connected in ${seconds(connectedMs)}`,
    whole <= 1200,
    '≤ 1,200 MB for 20,000',
  )
  const told = Promise.all(crowds.map((child) => message(child, 'told', ({ revision }) => revision === 2)))
  const saidMs = Date.now()
  server.send(2)
  const atMs = (await told).flatMap(({ atMs }) => atMs).map((at) => at - saidMs)
  row(
    `a goal put at the fleet server to ${machines} machines that it holds`,
    `half of them know in ${seconds(percentile(atMs, 0.5))}, 99 % in ${seconds(percentile(atMs, 0.99))}, the last in ${seconds(Math.max(...atMs))}`,
    percentile(atMs, 0.99) <= 10_000,
    'within a plain poll, 10 s',
  )
  for (const child of crowds) await end(child)
  await end(server)

  const plainPort = await freePort()
  const plain = await startServer(plainPort, 0)
  const some = names.slice(0, 2000)
  const pollers = await machinesOf(some, { port: plainPort, waitMs: 0, connections: 400 })
  await message(pollers, 'connected')
  await settle(4000)
  const before = await message(pollers, 'polls')
  const cpuBefore = cpuMsOf(plain.pid)
  const from = performance.now()
  await settle(quick ? 4000 : 8000)
  const after = await message(pollers, 'polls')
  const count = after.count - before.count
  const perCore = count / ((cpuMsOf(plain.pid) - cpuBefore) / 1000)
  const rate = count / ((performance.now() - from) / 1000)
  row(
    'plain polls over TLS, with what they report in the database',
    `${Math.round(perCore)} a second and core of the server; ${Math.round(rate)} a second on this machine, database and machines beside it`,
    perCore >= 8000,
    '≥ 8,000',
  )
}

const settle = (ms = 5000) => new Promise((resolve) => setTimeout(resolve, ms))

function residentMegabytes(pid = 0): number {
  const [, kilobytes = '0'] = /VmRSS:\s+(\d+) kB/.exec(readFileSync(`/proc/${pid}/status`, 'utf8')) ?? []
  return Number(kilobytes) / 1000
}

/** Of all threads; a tick is 10 ms. */
function cpuMsOf(pid = 0): number {
  const fields = readFileSync(`/proc/${pid}/stat`, 'utf8').split(') ')[1]?.split(' ') ?? []
  return (Number(fields[11]) + Number(fields[12])) * 10
}
