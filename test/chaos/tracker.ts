/** A fleet server, as far as an artifact's swarm goes: the real election, tracker and origin leases, over a real bucket. */
import { readFile } from 'node:fs/promises'
import { announceRequest } from '../../api/fleetApi.ts'
import { Store } from '../../artifacts/store.ts'
import { Swarms } from '../../fleet/swarms.ts'
import { regionSecret, TrackerHolder } from '../../fleet/trackerHolder.ts'
import { systemClock as clock } from '../../runtime/clock.ts'
import { createLogger } from '../../runtime/log.ts'
import { Metrics } from '../../runtime/metrics.ts'
import { rounds } from '../../runtime/rounds.ts'
import { createServer, listen } from '../../runtime/server.ts'
import { Database } from '../../runtime/sql.ts'
import type { CrowdFiles } from './crowd.ts'

const { CHAOS_DATABASE: url = '', CHAOS_PORT: port, CHAOS_FILES: files = '' } = process.env
const { artifact, descriptorFile, store } = JSON.parse(await readFile(files, 'utf8')) as CrowdFiles
const log = createLogger('chaos', 'info')
const never = new AbortController().signal
const metrics = new Metrics()
const database = new Database(url, { connectionLimit: 4, timeoutMs: 3000 })
const secret = await regionSecret(database)
const holder = new TrackerHolder({ database, url: `http://127.0.0.1:${port}`, clock, log, leaseMs: 2000 })
const bucket = new Store(store)
const swarms = new Swarms({
  ...{ database, holder, secret, clock, metrics, announceMs: 1000, originLeaseMs: 1500 },
  store: () => bucket,
})

const server = createServer({ log, metrics })
server.post<{ Params: { machine: string } }>('/announce/:machine', ({ params, body }) =>
  swarms.announce(params.machine, artifact, announceRequest.parse(body)),
)
server.get('/descriptor', async (_request, reply) =>
  reply.type('application/octet-stream').send(await readFile(descriptorFile)),
)
await listen(server, { host: '127.0.0.1', port: Number(port) })
const failed = (err: unknown) => log.info({ err }, 'a round failed')
await Promise.all([holder.run(never), rounds(() => swarms.tend(), { everyMs: 1000, clock, signal: never, failed })])
