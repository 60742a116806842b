import { z } from 'zod'
import { parseDescriptor } from '../api/descriptor.ts'
import { ShoalError, Transient } from '../api/errors.ts'
import { type AnnounceAnswer, type AnnounceRequest, announceAnswer, announceRequest } from '../api/fleetApi.ts'
import type { Template } from '../rollout/envelope.ts'
import { ApiClient } from '../runtime/apiClient.ts'
import type { Metrics } from '../runtime/metrics.ts'
import { bearerToken, type Server } from '../runtime/server.ts'
import { Callers, type CallersOptions } from './callers.ts'
import { type PollRouteOptions, registerPollRoute } from './pollRoute.ts'
import type { Swarms } from './swarms.ts'
import { isReplicaToken, replicaToken, type TrackerHolder } from './trackerHolder.ts'

/** The region's own bucket, as far as descriptors need it. */
interface DescriptorStore {
  readAll(key: string, maxBytes: number): Promise<Uint8Array>
}

export interface FleetRoutesOptions extends Omit<PollRouteOptions, 'callers'>, CallersOptions {
  swarms: Swarms
  holder: TrackerHolder
  secret: Buffer
  /** Undefined until the hub has said where the bucket is. */
  store: () => DescriptorStore | undefined
  descriptorKey: (key: string) => string
  /** This replica's own certificate, PEM, which its siblings have too. */
  certificate: () => string
  metrics: Metrics
}

const maxDescriptorBytes = 32 << 20
const keptDescriptors = 32
const forwarded = z.object({ machine: z.string(), announce: announceRequest })

/** The routes of api/fleetApi.ts. Any replica answers any machine. */
export function registerFleetRoutes(server: Server, options: FleetRoutesOptions): void {
  const { goals, swarms, holder, secret } = options
  const descriptors = new Map<string, Promise<Uint8Array>>()
  const callers = new Callers(options)
  registerPollRoute(server, { ...options, callers })

  server.get<{ Params: { namespace: string; artifact: string } }>(
    '/v1/agent/descriptor/:namespace/:artifact',
    async (request, reply) => {
      await callers.identify(request.headers)
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
    const machine = await callers.identify(request.headers)
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
}
