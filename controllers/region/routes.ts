import { ShoalError, Stalled } from '../../api/errors.ts'
import { type ReplicaWork, replicaReports, type WorkAnswer } from '../../api/regionApi.ts'
import type { DueReplica, Replicas } from '../../artifacts/replicas.ts'
import type { Store } from '../../artifacts/store.ts'
import type { TokenReviewer } from '../../runtime/identity.ts'
import { bearerToken, type Server } from '../../runtime/server.ts'
import { regionOf } from './access.ts'
import type { RegionDirectory } from './directory.ts'

export interface RegionRoutesOptions {
  regions: RegionDirectory
  replicas: Replicas
  tokens: TokenReviewer
  /** Called with the artifacts whose replicas changed, once that is in the database. */
  onChange?: (artifacts: { namespace: string; name: string }[]) => void
  /** How soon a region may ask again. Default 1,000. */
  pollAfterMs?: number
}

/** A 10 GB copy at 50 MB/s takes a tenth of it; a copy that outlives its URL goes on with a new one. */
const SOURCE_EXPIRY_SECONDS = 3600

/** GET /v1/region/work and POST /v1/region/replicas (api/regionApi.ts). */
export function registerRegionRoutes(server: Server, options: RegionRoutesOptions): void {
  const { regions, replicas } = options

  async function caller(headers: { authorization?: string | undefined }) {
    const name = regionOf((await options.tokens.review(bearerToken(headers))).username)
    const region = name === undefined ? undefined : regions.get(name)
    if (!region) throw new Stalled('Forbidden', 'The caller is not the ServiceAccount of a region.')
    return region
  }

  server.get('/v1/region/work', async (request): Promise<WorkAnswer> => {
    const region = await caller(request.headers)
    const { name } = region.metadata
    const { cordoned, home } = region.spec
    const managed = region.spec.replication === 'Managed'
    await replicas.contact(name)
    const due = cordoned ? [] : await replicas.due({ name, managed, home })
    const source = due.some(({ task }) => task === 'Copy') ? await homeStore(regions) : undefined
    return {
      region: { name, cordoned, spec: region.spec },
      work: await Promise.all(due.map((work) => withSource(work, source))),
      pollAfterMs: options.pollAfterMs ?? 1000,
    }
  })

  server.post('/v1/region/replicas', async (request) => {
    const region = await caller(request.headers)
    const reports = replicaReports.parse(request.body).replicas
    await replicas.report(region.metadata.name, reports)
    options.onChange?.(reports.map(({ namespace, name }) => ({ namespace, name })))
    return {}
  })
}

/** Without a home bucket there is nothing to copy from, but there is still to check. */
async function homeStore(regions: RegionDirectory): Promise<Store | undefined> {
  try {
    return await regions.homeStore()
  } catch (error) {
    if (error instanceof ShoalError && error.code === 'ConfigInvalid') return undefined
    throw error
  }
}

async function withSource(work: DueReplica, store: Store | undefined): Promise<ReplicaWork> {
  if (work.task !== 'Copy' || !store) return work
  const [blob, descriptor] = await Promise.all([
    store.presignGet(work.key, SOURCE_EXPIRY_SECONDS),
    store.presignGet(work.descriptorKey, SOURCE_EXPIRY_SECONDS),
  ])
  return { ...work, source: { blobUrl: blob.url, descriptorUrl: descriptor.url, expiresAt: blob.expiresAtMs } }
}
