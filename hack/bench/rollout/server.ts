/** A region's fleet server in a process of its own: the real one, with one goal that selects everybody. */
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { Fleet } from '../../../fleet/fleet.ts'
import { fleetGroups, growSlowly } from '../../../fleet/footprint.ts'
import { type GoalPayload, hashTemplate, signGoal, signIndex, template } from '../../../rollout/envelope.ts'
import { systemClock } from '../../../runtime/clock.ts'
import { loadSigningKey } from '../../../runtime/dsse.ts'
import { createLogger } from '../../../runtime/log.ts'
import { Metrics } from '../../../runtime/metrics.ts'
import { createServer, listen } from '../../../runtime/server.ts'
import { Database } from '../../../runtime/sql.ts'

export interface ServerSettings {
  databaseUrl: string
  port: number
  tls: { certFile: string; keyFile: string }
  /** The hub's, PEM. */
  signingKey: string
  holdMs: number
}

/** The goal, with this sequence, as the hub signs it. */
export function benchGoal(sequence: number): GoalPayload {
  const made = template.parse({
    artifact: {
      ...{ name: 'web-1', digest: `sha256:${'a'.repeat(64)}`, sizeBytes: 10e9, key: 'demo/web-1/1' },
      ...{ infoHash: 'b'.repeat(40), descriptorDigest: `sha256:${'d'.repeat(64)}` },
    },
    activation: { command: ['./server'] },
  })
  return {
    ...{ region: 'eu', namespace: 'demo', name: 'web', uid: 'u', place: 'web', selector: { matchLabels: {} } },
    ...{ template: made, templateHash: hashTemplate(made), target: { machines: 0, percent: 100 } },
    ...{ halted: false, rollback: false, maxUnavailable: '33%', failureThreshold: '2%' },
    ...{ revision: sequence, sequence, issuedAt: sequence },
  }
}

if (import.meta.main) {
  // Whoever started it is gone.
  process.once('disconnect', () => process.exit(1))
  const settings = JSON.parse(process.argv[2] ?? '') as ServerSettings
  const log = createLogger('bench', 'error')
  const metrics = new Metrics()
  const key = loadSigningKey(settings.signingKey)
  const database = new Database(settings.databaseUrl)
  await database.migrate(join(import.meta.dirname, '../../../fleet/migrations'))
  const fleet = new Fleet({
    ...{
      region: 'eu',
      database,
      keys: [key],
      url: `https://127.0.0.1:${settings.port}`,
      clock: systemClock,
      log,
      metrics,
    },
    ...{ store: () => undefined, descriptorKey: (at) => at, clusters: () => [] },
    certificate: () => readFileSync(settings.tls.certFile, 'utf8'),
    ...{ pollMs: 10_000, holdMs: settings.holdMs, beginWithinMs: 60_000, indexLifetimeMs: 60_000 },
    ...{ unreachableMs: 60_000, announceMs: 5000, originLeaseMs: 5000 },
  })
  growSlowly()
  const server = createServer({ log, metrics, tls: { ...settings.tls, groups: fleetGroups } })
  await fleet.serve(server)
  await listen(server, { host: '127.0.0.1', port: settings.port })
  void fleet.run(new AbortController().signal)
  const say = async (sequence: number) => {
    const goal = benchGoal(sequence)
    await fleet.put(goal, signGoal(goal, key))
    const index = { region: 'eu', issuedAt: Date.now(), goals: { 'demo/web': { revision: sequence, sequence } } }
    await fleet.putIndex(index, signIndex(index, key))
  }
  await say(1)
  process.on('message', (sequence: number) => void say(sequence))
  process.send?.('ready')
}
