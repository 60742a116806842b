/** A hub replica, as far as the queue goes: the real routes, broker and health checker. Loses some of its answers. */
import { Pipeline } from '../../api/pipeline.ts'
import { jobClaim } from '../../api/workerApi.ts'
import { registerWorkerRoutes } from '../../controllers/buildJob/routes.ts'
import type { RegionDirectory } from '../../controllers/region/directory.ts'
import { random } from '../../hack/bench/queue/day.ts'
import { Broker } from '../../queue/broker.ts'
import { HealthChecker } from '../../queue/healthChecker.ts'
import { recordUpload } from '../../queue/lease.ts'
import { systemClock as clock } from '../../runtime/clock.ts'
import type { TokenReviewer } from '../../runtime/identity.ts'
import { createLogger } from '../../runtime/log.ts'
import { Metrics } from '../../runtime/metrics.ts'
import { createServer, listen } from '../../runtime/server.ts'
import { Database } from '../../runtime/sql.ts'
import { startSqlFaults } from './sqlFaults.ts'

const { CHAOS_DATABASE: url = '', CHAOS_PORT: port, CHAOS_SEED: seed } = process.env
const leaseMs = Number(process.env.CHAOS_LEASE_MS)
const log = createLogger('chaos', 'info')
const never = new AbortController().signal
const next = random(Number(seed))
const database = new Database(await startSqlFaults(url, random(Number(seed) + 1)), {
  connectionLimit: 6,
  timeoutMs: 5000,
})
const metrics = new Metrics()

const broker = new Broker({ database, clock, log })
void broker.run(never)
const checker = new HealthChecker({
  ...{ database, log, metrics, leaseMs, intervalMs: 500 },
  onLost: () => broker.notify(),
})
void checker.run(never)

const server = createServer({ log, metrics })
server.addHook('onSend', async (request) => {
  if (next() < 0.02) request.raw.socket.destroy()
})
const spec = { source: { url: 'file:///none' }, build: { command: ['true'], output: 'out' } }
registerWorkerRoutes(server, {
  ...{ database, broker, leaseMs, claimHoldMs: 1000, namespace: 'shoal' },
  tokens: {
    review: async () => ({ username: 'system:serviceaccount:shoal:shoal-worker' }),
  } as unknown as TokenReviewer,
  pipeline: (key) => Pipeline.parse(Pipeline.make({ namespace: 'demo', name: key.split('/')[1] ?? '' }, spec)),
  regions: { activeRegions: () => ['one'], get: () => ({}) } as unknown as RegionDirectory,
  readSecret: async () => undefined,
  onChange: () => broker.notify(),
})
// Instead of an upload.
server.post('/v1/worker/built', async (request) => {
  await recordUpload(database, jobClaim.parse(request.body), {})
  return {}
})
await listen(server, { host: '127.0.0.1', port: Number(port) })
