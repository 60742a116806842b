import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { z } from 'zod'
import { Region } from '../api/region.ts'
import { descriptorKey } from '../artifacts/key.ts'
import { regionHub, runReplicator } from '../artifacts/replicator.ts'
import type { Store } from '../artifacts/store.ts'
import { GoalMirror } from '../controllers/regionalGoalState/mirror.ts'
import { Fleet } from '../fleet/fleet.ts'
import { fleetGroups, growSlowly } from '../fleet/footprint.ts'
import { registerMachinesRoute } from '../fleet/machinesRoute.ts'
import { ApiClient } from '../runtime/apiClient.ts'
import { systemClock as clock } from '../runtime/clock.ts'
import { Cluster } from '../runtime/cluster.ts'
import { loadVerificationKeys } from '../runtime/dsse.ts'
import { TokenReviewer, type TrustedCluster } from '../runtime/identity.ts'
import type { Logger } from '../runtime/log.ts'
import { Metrics } from '../runtime/metrics.ts'
import { createServer, listen } from '../runtime/server.ts'
import { Database } from '../runtime/sql.ts'
import { address, file, readSettings, spanMs } from './settings.ts'

const settings = {
  region: z.string(),
  /** Reaches the hub's API server, as this region. */
  hubKubeconfig: file,
  /** The region's own API server; absent: the one this pod runs in. */
  kubeconfig: file.optional(),
  hubUrl: z.url(),
  hubCa: file,
  /** The ServiceAccount token for `shoal-hub`, read again at each request. */
  hubTokenFile: file,
  /** The hub's public keys, PEM. */
  hubKeys: file,
  fleetDatabaseUrl: z.url(),
  storeAccessKeyId: z.string(),
  storeSecretAccessKey: z.string(),
  listen: address.default({ host: '0.0.0.0', port: 8443 }),
  tlsCert: file,
  tlsKey: file,
  /** Where the region's other replicas reach this one; by default the address it listens on. */
  advertiseUrl: z.url().optional(),
  /** Between two readings of the hub's goals, beside the watch. */
  hubPoll: spanMs('12s'),
  /** How soon a machine that is not held polls again. */
  agentPoll: spanMs('10s'),
  /** How long a machine's poll is held while there is nothing new for it; 0: not at all. */
  agentHold: spanMs('15s'),
  /** How soon a machine must begin what it was granted. */
  beginWithin: spanMs('60s'),
  /** How long after the hub's last index this region grants. */
  indexLifetime: spanMs('60s'),
  unreachable: spanMs('60s'),
  announce: spanMs('5s'),
  originLease: spanMs('5s'),
}

/** `shoal region`: every replica does everything; what must be done once is a row that one of them holds. */
export async function regionRole(log: Logger, signal: AbortSignal): Promise<void> {
  growSlowly()
  const options = readSettings(settings)
  const { region } = options
  const metrics = new Metrics()
  const keys = loadVerificationKeys(readFileSync(options.hubKeys, 'utf8'))
  await using stack = new AsyncDisposableStack()
  const hub = stack.use(Cluster.load({ kubeconfig: options.hubKubeconfig }))
  const own = stack.use(Cluster.load({ kubeconfig: options.kubeconfig }))
  const database = stack.use(new Database(options.fleetDatabaseUrl))
  await database.migrate(join(import.meta.dirname, '../fleet/migrations'))
  const token = () => readFileSync(options.hubTokenFile, 'utf8').trim()
  const hubClient = stack.use(
    new ApiClient({ baseUrl: options.hubUrl, ca: readFileSync(options.hubCa, 'utf8'), token }),
  )

  let store: Store | undefined
  let clusters: TrustedCluster[] = []
  const replicatorHub = regionHub(hubClient)
  const replicating = runReplicator({
    hub: {
      ...replicatorHub,
      report: (replicas, reportSignal) => replicatorHub.report(replicas, reportSignal),
      async work(workSignal) {
        const answer = await replicatorHub.work(workSignal)
        clusters = Region.spec.parse(answer.region.spec).clusters
        return answer
      },
    },
    credentials: { accessKeyId: options.storeAccessKeyId, secretAccessKey: options.storeSecretAccessKey },
    onStore: (opened) => {
      store = opened
    },
    log,
    signal,
  })

  let synced = false
  const server = createServer({
    log,
    metrics,
    bodyLimitBytes: 4 << 20,
    tls: { certFile: options.tlsCert, keyFile: options.tlsKey, groups: fleetGroups },
    ready: () => [
      ...(synced ? [] : ['the hub’s goals were not read yet']),
      ...(store ? [] : ['the bucket is not known yet']),
    ],
  })
  const { host, port } = options.listen
  const fleet = new Fleet({
    region,
    database,
    keys,
    url: options.advertiseUrl ?? `https://${host}:${port}`,
    store: () => store,
    descriptorKey,
    clusters: () => clusters,
    certificate: () => readFileSync(options.tlsCert, 'utf8'),
    clock,
    log,
    metrics,
    pollMs: options.agentPoll,
    holdMs: options.agentHold,
    beginWithinMs: options.beginWithin,
    indexLifetimeMs: options.indexLifetime,
    unreachableMs: options.unreachable,
    announceMs: options.announce,
    originLeaseMs: options.originLease,
  })
  await fleet.serve(server)
  registerMachinesRoute(server, {
    ...{ cluster: own, tokens: new TokenReviewer(own, undefined), region, database },
    unreachableMs: options.unreachable,
  })
  const { url } = await listen(server, options.listen)
  stack.defer(() => server.close())
  log.info({ url, region }, 'listening')
  const mirror = new GoalMirror({ region, hub, own, keys, store: fleet, log, metrics, clock, pollMs: options.hubPoll })
  void mirror.synced().then(() => {
    synced = true
  })
  await Promise.all([replicating, fleet.run(signal), mirror.run(signal)])
}
