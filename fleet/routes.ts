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
import type { Tracker } from '../swarm/tracker.ts'
import type { Goal, Goals } from './goals.ts'
import { grantActivation } from './grant.ts'
import type { HubIndex } from './hubIndex.ts'
import { type Machine, noteMachine, publicKeyOf } from './machines.ts'
import { originLease } from './originLease.ts'
import { recordReports } from './report.ts'
import { isReplicaToken, replicaToken, swarmKey, type TrackerHolder } from './trackerHolder.ts'

/** The region's own bucket, as far as machines need it. */
interface OriginStore {
  readAll(key: string, maxBytes: number): Promise<Uint8Array>
  presignGet(key: string, expiresSeconds: number): Promise<{ url: string; expiresAtMs: number }>
}

export interface FleetRoutesOptions {
  region: string
  database: Database
  goals: Goals
  index: HubIndex
  tracker: Tracker
  holder: TrackerHolder
  secret: Buffer
  /** Undefined until the hub has said where the bucket is. */
  store: () => OriginStore | undefined
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
  originLeaseMs: number
  random?: () => number
}

const maxDescriptorBytes = 32 << 20
const keptDescriptors = 32
const presignSeconds = 600
const agentServiceAccount = 'shoal-agent'
const forwarded = z.object({ machine: z.string(), announce: announceRequest })

/** The routes of api/fleetApi.ts. Any replica answers any machine. */
export function registerFleetRoutes(server: Server, options: FleetRoutesOptions): void {
  const { region, database, goals, index, tracker, holder, secret, metrics, clock, random = Math.random } = options
  /** Pieces a machine had at its last announce, by info hash and machine; of those that lack some. */
  const lastHave = new Map<string, number>()
  const descriptors = new Map<string, Promise<Uint8Array>>()
  const originBytes = metrics.counter('origin_read_bytes_total', 'Bytes machines read from the region’s bucket.')
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
      const beginWithinMs = Math.floor(Math.min(options.beginWithinMs, index.leftMs))
      const grant = await grantActivation(database, payload, machine, {
        beginWithinMs,
        unreachableMs: options.unreachableMs(),
      })
      if (!grant) continue
      given.push({ ...grant, beginWithinMs: Math.min(grant.beginWithinMs, beginWithinMs) })
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
    if (!holder.isHolder) throw new Transient('Unavailable', 'this replica is not the tracker any more')
    const { machine, announce } = forwarded.parse(request.body)
    return track(machine, announce)
  })

  async function track(machine: string, announce: AnnounceRequest): Promise<AnnounceAnswer> {
    const artifact = artifactOf(announce.namespace, announce.artifact)
    const { infoHash, peerId, host, port, havePieces, totalPieces, left } = announce
    if (infoHash !== artifact.infoHash) throw new ShoalError('Invalid', 'the info hash is not that of the artifact')
    const completed = havePieces >= totalPieces
    if (announce.originBytes > 0) originBytes.inc(announce.originBytes)
    if (left) {
      tracker.forget(infoHash, machine)
      lastHave.delete(`${infoHash}/${machine}`)
    }
    const known = left
      ? { peers: [], intervalMs: options.pollMs }
      : tracker.announce({ infoHash, peerId, machine, host, port, have: havePieces, completed }, clock.monotonic())
    // A tracker that has just taken over does not know yet which pieces the swarm has.
    const settled = holder.heldMs > known.intervalMs
    const wants = !left && !completed && settled && (known.peers.length === 0 || !isFedByPeers(machine, announce))
    const readBytes = announce.originBytes
    const held = await originLease(database, { infoHash, machine, wants, readBytes, leaseMs: options.originLeaseMs })
    const store = options.store()
    return {
      key: swarmKey(secret, artifact.descriptorDigest).toString('base64'),
      peers: known.peers.map(({ host, port }) => ({ host, port })),
      intervalMs: Math.round(known.intervalMs),
      ...(held && store && { origin: await origin(store, artifact) }),
    }
  }

  /**
   * Whether a machine can get the rest from its peers: one of them has all of it, and since the last announce, if this
   * is not the first, it got some. A second reader of the bucket before that would be a second copy.
   */
  function isFedByPeers(machine: string, { infoHash, havePieces, totalPieces }: AnnounceRequest): boolean {
    const key = `${infoHash}/${machine}`
    const before = lastHave.get(key)
    if (havePieces < totalPieces) lastHave.set(key, havePieces)
    else lastHave.delete(key)
    return tracker.counts(infoHash).complete > 0 && (before === undefined || havePieces > before)
  }

  async function origin(store: OriginStore, artifact: Template['artifact']) {
    const { url, expiresAtMs } = await store.presignGet(artifact.key, presignSeconds)
    return { url, expiresAtMs, forMs: options.originLeaseMs }
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
