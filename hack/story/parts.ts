import { mkdir } from 'node:fs/promises'
import { join } from 'node:path'
import { applyAdmission } from '../parts/admission.ts'
import { type ApiServer, startApiServer } from '../parts/apiServer.ts'
import { Authority } from '../parts/certificates.ts'
import { applyCrds } from '../parts/crds.ts'
import { type DatabaseServer, startDatabase } from '../parts/database.ts'
import { type StoreServer, startStore } from '../parts/store.ts'
import { grantRights } from './access.ts'
import type { Progress } from './progress.ts'
import { StoreMeter } from './storeMeter.ts'

/** What Shoal stands on: nothing here is Shoal. */
export interface Parts {
  hubServer: ApiServer
  /** Of the regions that don't share the hub's. */
  regionServers: Map<string, ApiServer>
  database: DatabaseServer
  /** By region, each with the bucket `shoal`. */
  stores: Map<string, StoreServer>
  /** Where each store is reached, through the meter. */
  storeEndpoints: Map<string, string>
  meter: StoreMeter
  authority: Authority
}

export const bucket = 'shoal'

interface PartsOptions {
  dir: string
  regions: string[]
  ownServers: string[]
  progress: Progress
}

/** Starts them all at once; the stack ends them. */
export async function startParts(options: PartsOptions, stack: AsyncDisposableStack): Promise<Parts> {
  const { dir, regions, ownServers, progress } = options
  const stores = new Map<string, StoreServer>()
  const storeEndpoints = new Map<string, string>()
  const regionServers = new Map<string, ApiServer>()
  const meter = stack.use(new StoreMeter())
  const folder = async (name: string) => {
    const path = join(dir, name)
    await mkdir(path, { recursive: true })
    return path
  }
  const begunStores = async (region: string) => {
    const store = stack.use(await startStore({ dir: await folder(`store-${region}`), name: `store-${region}` }))
    await store.createBucket(bucket)
    stores.set(region, store)
    storeEndpoints.set(region, `http://127.0.0.1:${await meter.relay(region, store.port)}`)
  }
  const apiServer = async (name: string, own: boolean) => {
    const server = stack.use(await startApiServer({ dir: await folder(name), own }))
    await applyCrds(server)
    if (name === 'api-hub') await applyAdmission(server)
    await grantRights(server)
    return server
  }
  const [hubServer, database, authority] = await allOf([
    progress.step('API server and etcd, with our kinds', () => apiServer('api-hub', ownServers.length > 0)),
    progress.step('database server', async () => stack.use(await startDatabase({ dir: await folder('database') }))),
    Authority.open(join(dir, 'certificates')),
    progress.step(`${regions.length} S3 servers`, () => allOf(regions.map(begunStores))),
    allOf(ownServers.map(async (region) => regionServers.set(region, await apiServer(`api-${region}`, true)))),
  ])
  return { hubServer, regionServers, database, stores, storeEndpoints, meter, authority }
}

/** As Promise.all, but throws only when all have ended, so that nothing starts after its clean-up. */
export async function allOf<T extends readonly unknown[]>(
  promises: T,
): Promise<{ -readonly [K in keyof T]: Awaited<T[K]> }> {
  const results = await Promise.allSettled(promises)
  const failed = results.find((result) => result.status === 'rejected')
  if (failed) throw failed.reason
  return results.map((result) => (result as PromiseFulfilledResult<unknown>).value) as never
}
