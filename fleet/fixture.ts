/** For the tests of this folder: a region's database and two servers on it, and machines as far as a server sees them. */
import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { encodeDescriptor } from '../api/descriptor.ts'
import { type GoalReport, pollAnswer } from '../api/fleetApi.ts'
import { startDatabase } from '../hack/parts/database.ts'
import { freePort, temporaryDir } from '../hack/parts/process.ts'
import { type GoalPayload, hashTemplate, signGoal, signIndex, template } from '../rollout/envelope.ts'
import { ApiClient } from '../runtime/apiClient.ts'
import { createAuthority, createServerCertificate } from '../runtime/certificates.ts'
import { systemClock } from '../runtime/clock.ts'
import { generateSigningKey, loadSigningKey } from '../runtime/dsse.ts'
import { signMachineToken } from '../runtime/identity.ts'
import { createLogger } from '../runtime/log.ts'
import { Metrics } from '../runtime/metrics.ts'
import { createServer, listen } from '../runtime/server.ts'
import { Database } from '../runtime/sql.ts'
import { Fleet } from './fleet.ts'
import { enrolMachine } from './machines.ts'

export const region = 'eu'
export const parts = new AsyncDisposableStack()
const dir = parts.use(await temporaryDir('shoal-fleet')).path
const server = parts.use(await startDatabase())
export const hubKey = loadSigningKey(generateSigningKey().privateKeyPem)
export const authority = await createAuthority('test')
const { certificate, key } = await createServerCertificate(authority, ['127.0.0.1'])
export const tls = { authority: authority.certificate, certFile: join(dir, 'tls.crt'), keyFile: join(dir, 'tls.key') }
await writeFile(tls.certFile, certificate)
await writeFile(tls.keyFile, key)
const descriptor = encodeDescriptor({
  name: 'web',
  pieceLengthBytes: 262_144,
  files: [{ path: 'server', sizeBytes: 10, executable: true }],
  pieceSha1: Buffer.alloc(20, 1),
  pieceSha256: Buffer.alloc(32, 2),
})

export interface Replica {
  fleet: Fleet
  url: string
  metrics: Metrics
  stop(): void
}
let schemas = 0

/** A region's database and two servers on it. */
export async function startRegion(
  options: Partial<
    Record<'indexLifetimeMs' | 'beginWithinMs' | 'originLeaseMs' | 'holdMs' | 'unreachableMs', number>
  > = {},
  given?: Database,
) {
  const database =
    given ?? parts.use(new Database(await server.createSchema(`fleet_${++schemas}`), { connectionLimit: 20 }))
  await database.migrate(join(import.meta.dirname, 'migrations'))
  const replicas: Replica[] = []
  for (const _ of [1, 2]) {
    const port = await freePort()
    const url = `https://127.0.0.1:${port}`
    const metrics = new Metrics()
    const log = createLogger('test', 'silent')
    const fleet = new Fleet({
      region,
      database,
      keys: [hubKey],
      url,
      store: () => ({
        readAll: async () => descriptor,
        presignGet: async (at) => ({ url: `http://127.0.0.1/${at}`, expiresAtMs: Date.now() + 60_000 }),
      }),
      descriptorKey: (at) => `${at}.torrent`,
      clusters: () => [],
      certificate: () => certificate,
      clock: systemClock,
      log,
      metrics,
      pollMs: 100,
      holdMs: options.holdMs ?? 10_000,
      beginWithinMs: options.beginWithinMs ?? 60_000,
      indexLifetimeMs: options.indexLifetimeMs ?? 60_000,
      unreachableMs: options.unreachableMs ?? 60_000,
      announceMs: 100,
      originLeaseMs: options.originLeaseMs ?? 1000,
    })
    const http = createServer({ log, metrics, tls })
    await fleet.serve(http)
    await listen(http, { host: '127.0.0.1', port })
    const stop = new AbortController()
    const running = fleet.run(stop.signal)
    parts.defer(async () => {
      stop.abort()
      await running
      await http.close()
    })
    replicas.push({ fleet, url, metrics, stop: () => stop.abort() })
  }
  return { database, replicas: replicas as [Replica, Replica] }
}

/** A machine as its agent would be, as far as the fleet server sees it. */
export async function machine(
  database: Database,
  name: string,
  labels: Record<string, string> = { app: 'web' },
  namespaces = ['demo'],
) {
  const { privateKeyPem, publicKeyPem } = generateSigningKey()
  await enrolMachine(database, { name, publicKey: publicKeyPem, labels, namespaces })
  const token = await signMachineToken(privateKeyPem, { machine: name, region })
  const client = (url: string) =>
    parts.use(new ApiClient({ baseUrl: url, ca: authority.certificate, token: () => token }))
  const clients = new Map<string, ApiClient>()
  const at = (url: string) => {
    const known = clients.get(url) ?? client(url)
    clients.set(url, known)
    return known
  }
  return {
    name,
    at,
    poll: (url: string, goals: GoalReport[] = [], waitMs?: number) =>
      at(url).request('POST', '/v1/agent/poll', {
        body: { agentVersion: '1', labels, namespaces, goals, ...(waitMs !== undefined && { waitMs }) },
        schema: pollAnswer,
      }),
    announce: (url: string, more: object = {}) =>
      at(url).request<{ key: string; peers: object[]; origin?: { pieces: number[] } }>('POST', '/v1/agent/announce', {
        body: {
          ...{ namespace: 'demo', artifact: 'web-1', infoHash: 'b'.repeat(40), peerId: 'c'.repeat(40) },
          ...{ host: '127.0.0.1', port: 7000, havePieces: 0, totalPieces: 4, ...more },
        },
      }),
  }
}
export type TestMachine = Awaited<ReturnType<typeof machine>>

export const web = (command: string) =>
  template.parse({
    artifact: {
      name: 'web-1',
      digest: `sha256:${'a'.repeat(64)}`,
      sizeBytes: 128 << 10,
      key: 'demo/web-1/1',
      infoHash: 'b'.repeat(40),
      descriptorDigest: `sha256:${'d'.repeat(64)}`,
    },
    activation: { command: [command], stop: { timeout: '1s' }, deadline: '1s' },
  })

export function goal(sequence: number, more: Partial<GoalPayload> = {}): GoalPayload {
  const made = more.template ?? web('./server')
  return {
    ...{ region, namespace: 'demo', name: 'web', uid: 'u', place: 'web', selector: { matchLabels: { app: 'web' } } },
    ...{ template: made, templateHash: hashTemplate(made), target: { machines: 0, percent: 100 } },
    ...{ halted: false, rollback: false, maxUnavailable: '33%', failureThreshold: '2%' },
    ...{ revision: sequence, sequence, issuedAt: sequence },
    ...more,
  }
}

/** When the last index was. */
export const issued = { at: 0 }
/** The hub says this to the region: the goal, and an index that names it. */
export async function say(fleets: Replica[], payload: GoalPayload): Promise<void> {
  for (const { fleet } of fleets) await fleet.put(payload, signGoal(payload, hubKey))
  await sayIndex(fleets, payload)
}
export async function sayIndex(fleets: Replica[], payload: GoalPayload, more: object = {}): Promise<void> {
  const { revision, sequence } = payload
  const index = { region, issuedAt: ++issued.at, goals: { 'demo/web': { revision, sequence, ...more } } }
  for (const { fleet } of fleets) await fleet.putIndex(index, signIndex(index, hubKey))
}

export const report = ({ sequence, revision, templateHash }: GoalPayload, more: Partial<GoalReport>): GoalReport => ({
  ...{ namespace: 'demo', name: 'web', sequence, revision, template: templateHash, state: 'Fetched' },
  ...more,
})
export const old = 'f'.repeat(16)
export const countsOf = async ({ fleet }: Replica) => (await fleet.counts())[0]?.counts
