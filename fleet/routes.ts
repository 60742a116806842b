import { z } from 'zod'
import { parseDescriptor } from '../api/descriptor.ts'
import { ShoalError, Transient } from '../api/errors.ts'
import {
  type AnnounceAnswer,
  type AnnounceRequest,
  announceAnswer,
  announceRequest,
  type Grant,
  type PollAnswer,
  pollRequest,
} from '../api/fleetApi.ts'
import type { Template } from '../rollout/envelope.ts'
import { ApiClient } from '../runtime/apiClient.ts'
import type { Clock } from '../runtime/clock.ts'
import { type TrustedCluster, verifyMachineToken, verifyServiceAccountToken } from '../runtime/identity.ts'
import type { Metrics } from '../runtime/metrics.ts'
import { bearerToken, type Server } from '../runtime/server.ts'
import type { Database } from '../runtime/sql.ts'
import type { Goal, Goals } from './goals.ts'
import { Granter } from './grant.ts'
import type { HubIndex } from './hubIndex.ts'
import { type Machine, noteMachine, publicKeyOf } from './machines.ts'
import { recordReports } from './report.ts'
import type { Swarms } from './swarms.ts'
import { isReplicaToken, replicaToken, type TrackerHolder } from './trackerHolder.ts'

/** The region's own bucket, as far as descriptors need it. */
interface DescriptorStore {
  readAll(key: string, maxBytes: number): Promise<Uint8Array>
}

export interface FleetRoutesOptions {
  region: string
  database: Database
  goals: Goals
  index: HubIndex
  swarms: Swarms
  holder: TrackerHolder
  secret: Buffer
  /** Undefined until the hub has said where the bucket is. */
  store: () => DescriptorStore | undefined
  descriptorKey: (key: string) => string
  /** The clusters whose nodes are machines of this region. */
  clusters: () => TrustedCluster[]
  /** This replica's own certificate, PEM, which its siblings have too. */
  certificate: () => string
  clock: Clock
  metrics: Metrics
  pollMs: number
  beginWithinMs: number
  /** How long a machine must be silent to be unreachable; longer while this server itself is young. */
  unreachableMs: () => number
  random?: () => number
}

const maxDescriptorBytes = 32 << 20
const keptDescriptors = 32
const agentServiceAccount = 'shoal-agent'
const forwarded = z.object({ machine: z.string(), announce: announceRequest })

/** The routes of api/fleetApi.ts. Any replica answers any machine. */
export function registerFleetRoutes(server: Server, options: FleetRoutesOptions): void {
  const { region, database, goals, index, swarms, holder, secret, metrics, random = Math.random } = options
  const descriptors = new Map<string, Promise<Uint8Array>>()
  const granter = new Granter(database)
  const grants = metrics.counter('grants_total', 'Permissions to activate that were given.')

  server.post('/v1/agent/poll', async (request): Promise<PollAnswer> => {
    const name = await identify(request.headers)
    const poll = pollRequest.parse(request.body)
    const machine: Machine = { name, labels: poll.labels, namespaces: poll.namespaces }
    if (await noteMachine(database, name, poll)) await goals.reselect(machine)
    await recordReports(database, name, poll.goals)
    const selecting = goals.selecting(machine)
    return {
      ...(index.envelope !== undefined && { index: index.envelope }),
      goals: selecting.map(({ envelope }) => envelope),
      grants: await grantsFor(name, selecting, poll.goals),
      pollAfterMs: Math.round(options.pollMs * (0.8 + random() * 0.4)),
    }
  })

  async function grantsFor(
    machine: string,
    selecting: Goal[],
    reports: { namespace: string; name: string; state: string; template: string }[],
  ) {
    const given: Grant[] = []
    for (const { payload } of selecting) {
      // Only a machine that has the release and waits for this is worth a transaction.
      const waits = reports.some(
        (report) =>
          report.namespace === payload.namespace &&
          report.name === payload.name &&
          report.state === 'Fetched' &&
          report.template === payload.templateHash,
      )
      if (!waits || !index.fresh || !index.names(payload)) continue
      // Nothing begins later than the index that allows it is good for.
      const beginWithinMs = () => Math.floor(Math.min(options.beginWithinMs, index.leftMs))
      const grant = await granter.ask(payload, machine, () => ({
        beginWithinMs: beginWithinMs(),
        unreachableMs: options.unreachableMs(),
      }))
      if (!grant) continue
      given.push({ ...grant, beginWithinMs: Math.min(grant.beginWithinMs, beginWithinMs()) })
      grants.inc()
    }
    return given
  }

  server.get<{ Params: { namespace: string; artifact: string } }>(
    '/v1/agent/descriptor/:namespace/:artifact',
    async (request, reply) => {
      await identify(request.headers)
      const artifact = artifactOf(request.params.namespace, request.params.artifact)
      return reply.type('application/x-bittorrent').send(Buffer.from(await descriptor(artifact)))
    },
  )

  /** An artifact that a goal of this region names. */
  function artifactOf(namespace: string, name: string): Template['artifact'] {
    for (const { payload } of goals.offered.values()) {
      if (payload.namespace !== namespace) continue
      const named = [payload.template, payload.previous?.template].find((template) => template?.artifact.name === name)
      if (named) return named.artifact
    }
    throw new ShoalError('NotFound', `no goal of this region names artifact ${name}`)
  }

  function descriptor(artifact: Template['artifact']): Promise<Uint8Array> {
    const known = descriptors.get(artifact.descriptorDigest)
    if (known) return known
    const read = readDescriptor(artifact)
    descriptors.set(artifact.descriptorDigest, read)
    for (const old of descriptors.keys()) if (descriptors.size > keptDescriptors) descriptors.delete(old)
    read.catch(() => descriptors.delete(artifact.descriptorDigest))
    return read
  }

  async function readDescriptor(artifact: Template['artifact']): Promise<Uint8Array> {
    const store = options.store()
    if (!store) throw new Transient('Unavailable', 'the region does not know its bucket yet')
    const bytes = await store.readAll(options.descriptorKey(artifact.key), maxDescriptorBytes)
    if (parseDescriptor(bytes).digest !== artifact.descriptorDigest)
      throw new Transient('ChecksumMismatch', `the descriptor of ${artifact.name} is not the one the hub signed`)
    return bytes
  }

  server.post('/v1/agent/announce', async (request): Promise<AnnounceAnswer> => {
    const machine = await identify(request.headers)
    const announce = announceRequest.parse(request.body)
    if (holder.isHolder) return track(machine, announce)
    const url = holder.holderUrl
    if (url === undefined) throw new Transient('Unavailable', 'no replica is the tracker yet')
    await using sibling = new ApiClient({
      baseUrl: url,
      pinned: options.certificate(),
      token: () => replicaToken(secret),
    })
    return await sibling.request('POST', '/v1/replica/announce', {
      body: { machine, announce },
      schema: announceAnswer,
    })
  })

  server.post('/v1/replica/announce', async (request): Promise<AnnounceAnswer> => {
    if (!isReplicaToken(secret, bearerToken(request.headers)))
      throw new ShoalError('Unauthorized', 'the caller is not a replica of this region')
    const { machine, announce } = forwarded.parse(request.body)
    return track(machine, announce)
  })

  function track(machine: string, announce: AnnounceRequest): Promise<AnnounceAnswer> {
    const artifact = artifactOf(announce.namespace, announce.artifact)
    if (announce.infoHash !== artifact.infoHash)
      throw new ShoalError('Invalid', 'the info hash is not that of the artifact')
    return swarms.announce(machine, artifact, announce)
  }

  /** The machine that calls: by the key it enrolled with, or as a node of a cluster of this region. */
  async function identify(headers: { authorization?: string | undefined }): Promise<string> {
    const token = bearerToken(headers)
    try {
      return await verifyMachineToken(token, { region, publicKeyOf: (machine) => publicKeyOf(database, machine) })
    } catch (error) {
      if (!(error instanceof ShoalError && error.code === 'Unauthorized')) throw error
    }
    const { cluster, serviceAccount, node } = await verifyServiceAccountToken(
      token,
      `shoal-region-${region}`,
      options.clusters(),
    )
    if (serviceAccount !== agentServiceAccount || !node)
      throw new ShoalError('Forbidden', 'the token is not that of an agent on a node')
    return `${cluster}/${node.name}`
  }
}
