/**
 * controllers/region/: the regions as the hub sees them: who they are, which of them is home, what they may do in the
 * hub's API server, and the HTTP routes their replicators call. Only this folder knows the home bucket's credentials.
 */
import { Stalled, Transient } from '../../api/errors.ts'
import type { Region } from '../../api/region.ts'
import { Store } from '../../artifacts/store.ts'

export interface DirectoryOptions {
  /** All Regions, from a cache. */
  list: () => Region[]
  /** A Secret's decoded data; undefined when it isn't there. */
  readSecret: (namespace: string, name: string) => Promise<Record<string, string> | undefined>
}

/** How long credentials are used before the Secret is read again, so that it can be rotated. */
const CREDENTIALS_MS = 60_000

/** The regions of this hub. */
export class RegionDirectory implements Disposable {
  readonly #options: DirectoryOptions
  #home: { of: string; readAtMs: number; store: Store } | undefined

  constructor(options: DirectoryOptions) {
    this.#options = options
  }

  all(): Region[] {
    return this.#options.list().filter((region) => !region.metadata.deletionTimestamp)
  }

  /** Of all regions, cordoned ones too, sorted. */
  names(): string[] {
    return this.all()
      .map(({ metadata }) => metadata.name)
      .sort()
  }

  get(name: string): Region | undefined {
    return this.all().find((region) => region.metadata.name === name)
  }

  /** Names of the regions that exist and aren't cordoned, sorted. */
  activeRegions(): string[] {
    return this.all()
      .filter((region) => !region.spec.cordoned)
      .map((region) => region.metadata.name)
      .sort()
  }

  /** The one region that is home; undefined when there is none, or more than one. */
  homeRegion(): string | undefined {
    return this.#homeRegion()?.metadata.name
  }

  /**
   * The home region's bucket. The Store belongs to the directory: don't dispose of it.
   *
   * @throws Stalled `ConfigInvalid` when not exactly one region is home, or its Secret lacks the keys
   */
  async homeStore(): Promise<Store> {
    const region = this.#homeRegion()
    const ref = region?.spec.store.credentialsSecretRef
    if (!region || !ref) throw new Stalled('ConfigInvalid', 'Exactly one Region has to be home, with credentials.')
    const { endpoint, bucket } = region.spec.store
    const of = JSON.stringify([endpoint, bucket, ref])
    if (this.#home?.of === of && Date.now() - this.#home.readAtMs < CREDENTIALS_MS) return this.#home.store
    const secret = await this.#readSecret(ref)
    const { accessKeyId, secretAccessKey } = secret ?? {}
    if (!accessKeyId || !secretAccessKey)
      throw new Stalled(
        'ConfigInvalid',
        `Secret ${ref.namespace}/${ref.name} has to hold accessKeyId and secretAccessKey.`,
      )
    // the store before may still be in use; its idle connections close by themselves
    this.#home = { of, readAtMs: Date.now(), store: new Store({ endpoint, bucket, accessKeyId, secretAccessKey }) }
    return this.#home.store
  }

  [Symbol.dispose](): void {
    this.#home?.store[Symbol.dispose]()
  }

  #homeRegion(): Region | undefined {
    const homes = this.all().filter((region) => region.spec.home)
    return homes.length === 1 ? homes[0] : undefined
  }

  async #readSecret(ref: { namespace: string; name: string }) {
    try {
      return await this.#options.readSecret(ref.namespace, ref.name)
    } catch (error) {
      throw new Transient('Unavailable', `Reading Secret ${ref.namespace}/${ref.name} failed.`, { cause: error })
    }
  }
}
