/**
 * agent/: one machine's part. It polls its region's fleet server, verifies what the hub signed, fetches releases from
 * its peers, and hands activations it has a grant for to the place's supervisor (`supervisor/`), which outlives it.
 * What it can't verify changes nothing; when nobody answers, everything stays as it is. Nothing here is global: many
 * agents run in one process or on one machine, each in its own data folder.
 */
import { chmod, mkdir } from 'node:fs/promises'
import { join } from 'node:path'
import type { SwarmsAnswer } from '../api/agentApi.ts'
import type { Clock } from '../runtime/clock.ts'
import { systemClock } from '../runtime/clock.ts'
import type { Logger } from '../runtime/log.ts'
import { Metrics } from '../runtime/metrics.ts'
import { createServer, listen } from '../runtime/server.ts'
import { SwarmNode } from '../swarm/node.ts'
import type { RateSchedule } from '../swarm/rateSchedule.ts'
import { readEnrolment } from './enrolment.ts'
import { FleetClient } from './fleet.ts'
import { GoalBook } from './goals.ts'
import { Machine } from './machine.ts'
import { type PollTimings, pollUntil } from './poll.ts'
import { startBeside, startOnHost } from './startSupervisor.ts'
import { AgentState } from './state.ts'
import { writeDurably } from './supervisor/durable.ts'

export interface AgentOptions {
  enrolmentFile: string
  /** The ServiceAccount's token, read again at each request; needed where the enrolment has no key. */
  tokenFile?: string | undefined
  /** Everything it writes is in here; absolute. */
  dataDir: string
  /** /healthz, /readyz, /metrics and /v1/swarms. */
  listen?: { host: string; port: number }
  /** `address` is the host that peers dial. */
  swarm: {
    host: string
    port: number
    address: string
    uploadLimit?: RateSchedule | undefined
    downloadLimit?: RateSchedule | undefined
  }
  /** In a DaemonSet's pod: applications run on the host all the same. */
  host?: { nsenter: boolean }
  log: Logger
  metrics?: Metrics
  clock?: Clock
  version?: string
  timings?: Partial<PollTimings>
}

export class Agent {
  readonly #options: AgentOptions

  constructor(options: AgentOptions) {
    this.#options = options
  }

  /** Until the signal. The applications and their supervisors go on. @throws Stalled `ConfigInvalid`. */
  async run(signal: AbortSignal): Promise<void> {
    const { dataDir, log, enrolmentFile, tokenFile, swarm, clock = systemClock } = this.#options
    const metrics = this.#options.metrics ?? new Metrics()
    const membership = await readEnrolment(enrolmentFile)
    await using fleet = new FleetClient(membership, tokenFile)
    await mkdir(dataDir, { recursive: true })
    for (const name of ['releases', 'places']) {
      await mkdir(join(dataDir, name), { recursive: true })
      // Applications run as other users and are to reach their release.
      await chmod(join(dataDir, name), 0o755)
    }
    const refused = metrics.counter('agent_goals_refused_total', 'Goals and indexes not accepted.', ['reason'])
    const state = await AgentState.open(dataDir)
    const goals = GoalBook.open({ membership, state, log, onRefused: (reason) => refused.inc({ reason }) })
    await using node = await SwarmNode.listen({
      host: swarm.host,
      port: swarm.port,
      log,
      uploadLimit: swarm.uploadLimit,
      downloadLimit: swarm.downloadLimit,
    })
    const startSupervisor = this.#options.host?.nsenter ? startOnHost(dataDir) : startBeside
    await using machine = new Machine({
      dataDir,
      membership,
      goals,
      fleet,
      node,
      address: swarm.address,
      startSupervisor,
      clock,
      log,
      metrics,
    })
    await machine.start()
    const polled = { everAnswered: false }
    const ready = () => (polled.everAnswered ? [] : ['the fleet server has not answered yet'])
    const server = createServer({ log, metrics, ready })
    server.get('/v1/swarms', async (): Promise<SwarmsAnswer> => ({ swarms: machine.swarms() }))
    try {
      const { url } = await listen(server, this.#options.listen ?? { host: '127.0.0.1', port: 0 })
      await writeDurably(join(dataDir, 'agent.json'), JSON.stringify({ pid: process.pid, url, swarmPort: node.port }))
      log.info({ url, swarmPort: node.port, region: membership.region }, 'agent started')
      await pollUntil(signal, {
        fleet,
        machine,
        goals,
        clock,
        log,
        request: {
          agentVersion: this.#options.version ?? '0.1.0',
          labels: membership.labels,
          namespaces: membership.namespaces,
        },
        onAnswer: () => {
          polled.everAnswered = true
        },
        ...(this.#options.timings && { timings: this.#options.timings }),
      })
    } finally {
      await server.close()
    }
  }
}
