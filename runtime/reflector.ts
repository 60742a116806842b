import { type Clock, systemClock } from './clock.ts'
import { type AnyObject, ApiError, type Cluster, type Selection } from './cluster.ts'
import type { Resource } from './core.ts'
import type { Logger } from './log.ts'
import type { Metrics } from './metrics.ts'

export interface Named {
  metadata: { name: string; namespace?: string | undefined; resourceVersion?: string | undefined }
}

export interface ReflectorOptions<T> {
  cluster: Cluster
  resource: Resource
  selection?: Selection
  /**
   * Throws for an object that doesn't fit: `onInvalid` is told, and what was known of it before stays, so that a bad
   * write changes nothing.
   */
  parse: (object: unknown) => T
  onInvalid?: (key: string, error: unknown) => void
  log: Logger
  metrics?: Metrics
  clock?: Clock
  random?: () => number
  /** Everything is listed anew so often, in case an event was lost. Default: 10 minutes. */
  relistMs?: number
  /** How long the server keeps a watch open. Default: 5 minutes. */
  watchSeconds?: number
  /** A watch without an event or bookmark for so long is taken for dead. Bookmarks come each minute. Default: 2.5 minutes. */
  silenceMs?: number
}

export type ChangeHandler<T> = (key: string, object: T | undefined, previous: T | undefined) => void

/** `namespace/name`, or the name of what has no namespace. */
const keyOf = ({ metadata }: Named): string =>
  metadata.namespace === undefined ? metadata.name : `${metadata.namespace}/${metadata.name}`

/** Versions of one kind are numbers that grow, until a server is restored from a backup. */
const versionOf = ({ metadata }: Named): bigint => BigInt(metadata.resourceVersion || 0)
/** After so long an older version is what the server now has. */
const rememberedMs = 10_000

/**
 * A local copy of a kind's objects, kept true by list and watch.
 *
 *   list (by pages) → watch from the list's resourceVersion → on a clean end or a reset: watch again from the last one
 *   seen → on 410 Gone or after relistMs: list again, and what is missing in it was deleted meanwhile.
 *
 * client-node's own informer stops for good at the first reset, asks for no bookmarks and does not page.
 */
export class Reflector<T extends Named> {
  readonly #options: ReflectorOptions<T>
  readonly #clock: Clock
  readonly #objects = new Map<string, T>()
  /** What this process wrote lately: an event of an older version would take it back for a moment. */
  readonly #written = new Map<string, { version: bigint; untilMs: number }>()
  readonly #handlers: ChangeHandler<T>[] = []
  readonly #synced = Promise.withResolvers<void>()
  readonly #count: (what: 'list' | 'watch' | 'broken' | 'invalid') => void
  #resourceVersion: string | undefined
  #listedAt = Number.NEGATIVE_INFINITY

  constructor(options: ReflectorOptions<T>) {
    this.#options = options
    this.#clock = options.clock ?? systemClock
    const steps = options.metrics?.counter('reflector_total', 'What reflectors did.', ['resource', 'what'])
    this.#count = (what) => steps?.inc({ resource: options.resource.plural, what })
    // Whoever waits is told; nobody has to.
    this.#synced.promise.catch(() => undefined)
  }

  get(key: string): T | undefined {
    return this.#objects.get(key)
  }

  list(): T[] {
    return [...this.#objects.values()]
  }

  /** Takes in the answer to a write, so that whoever reads next sees it, without waiting for the watch. */
  remember(written: AnyObject): void {
    const key = keyOf(written)
    if (!this.#objects.has(key) || this.#isOlder(written)) return
    this.#put(written)
    this.#written.set(key, { version: versionOf(written), untilMs: this.#clock.monotonic() + rememberedMs })
  }

  /** Called for each change, and at once for what is here already. A handler that throws is logged. */
  onChange(handler: ChangeHandler<T>): void {
    this.#handlers.push(handler)
    for (const [key, object] of this.#objects) this.#call(handler, key, object, undefined)
  }

  /** Resolves when the first list is here; rejects when `run` ended before. */
  synced(): Promise<void> {
    return this.#synced.promise
  }

  /** Runs until the signal aborts. Never throws. */
  async run(signal: AbortSignal): Promise<void> {
    const { log, resource, random = Math.random } = this.#options
    let failures = 0
    while (!signal.aborted) {
      try {
        if (this.#mustList(failures)) await this.#relist(signal)
        this.#count('watch')
        const events = await this.#watch(signal)
        failures = events > 0 ? 0 : failures + 1
      } catch (error) {
        if (signal.aborted) break
        failures++
        this.#count('broken')
        log.debug({ resource: resource.plural, err: error }, 'watch broken')
      }
      const delayMs = Math.min(30_000, 100 * 2 ** Math.min(failures, 10)) * (0.5 + random() / 2)
      await this.#clock.sleep(delayMs, signal).catch(() => undefined)
    }
    this.#synced.reject(signal.reason)
  }

  /** Many failures in a row: the version may be one the server never had, as after it was restored from a backup. */
  #mustList(failures: number): boolean {
    const { relistMs = 600_000 } = this.#options
    const due = this.#clock.monotonic() - this.#listedAt > relistMs
    return this.#resourceVersion === undefined || due || (failures > 0 && failures % 5 === 0)
  }

  async #relist(signal: AbortSignal): Promise<void> {
    const { cluster, resource, selection } = this.#options
    this.#count('list')
    const { items, resourceVersion } = await cluster.list<AnyObject>(resource, selection, signal)
    const listed = new Set<string>()
    for (const item of items) {
      listed.add(keyOf(item))
      this.#put(item)
    }
    for (const [key, { metadata }] of this.#objects)
      if (!listed.has(key)) this.#remove({ metadata: { ...metadata, resourceVersion } })
    this.#resourceVersion = resourceVersion
    this.#listedAt = this.#clock.monotonic()
    this.#synced.resolve()
  }

  /** Follows the changes until the server ends the watch; the number of events. */
  async #watch(signal: AbortSignal): Promise<number> {
    const { cluster, resource, selection, watchSeconds = 300, silenceMs = 150_000 } = this.#options
    const silence = new AbortController()
    const silent = () => silence.abort(new Error('the watch fell silent'))
    let timer = setTimeout(silent, silenceMs)
    let events = 0
    try {
      const since = { ...selection, resourceVersion: this.#resourceVersion ?? '0', timeoutSeconds: watchSeconds }
      for await (const { type, object } of cluster.watch(resource, since, AbortSignal.any([signal, silence.signal]))) {
        clearTimeout(timer)
        timer = setTimeout(silent, silenceMs)
        if (type === 'ERROR') {
          // 410 Gone: the version is too old to watch from.
          this.#resourceVersion = undefined
          return events
        }
        events++
        if (type === 'DELETED') this.#remove(object)
        else if (type !== 'BOOKMARK') this.#put(object)
        this.#resourceVersion = object.metadata.resourceVersion ?? this.#resourceVersion
      }
    } catch (error) {
      if (error instanceof ApiError && error.status === 410) this.#resourceVersion = undefined
      throw error
    } finally {
      clearTimeout(timer)
    }
    return events
  }

  #put(raw: AnyObject): void {
    const key = keyOf(raw)
    const previous = this.#objects.get(key)
    if (previous && previous.metadata.resourceVersion === raw.metadata.resourceVersion) return
    if (this.#isOlder(raw)) return
    let object: T
    try {
      object = this.#options.parse(raw)
    } catch (error) {
      this.#invalid(key, error)
      return
    }
    this.#objects.set(key, object)
    for (const handler of this.#handlers) this.#call(handler, key, object, previous)
  }

  #invalid(key: string, error: unknown): void {
    const { log, resource, onInvalid } = this.#options
    this.#count('invalid')
    log.info({ key, resource: resource.plural, reason: (error as Error).message }, 'object does not parse')
    try {
      onInvalid?.(key, error)
    } catch (thrown) {
      log.error({ key, err: thrown }, 'invalid handler failed')
    }
  }

  #isOlder(object: Named): boolean {
    const key = keyOf(object)
    const written = this.#written.get(key)
    if (!written) return false
    if (versionOf(object) < written.version && this.#clock.monotonic() < written.untilMs) return true
    this.#written.delete(key)
    return false
  }

  /** By the version at which it was found to be gone. */
  #remove(gone: Named): void {
    if (this.#isOlder(gone)) return
    const key = keyOf(gone)
    const previous = this.#objects.get(key)
    if (!this.#objects.delete(key)) return
    for (const handler of this.#handlers) this.#call(handler, key, undefined, previous)
  }

  #call(handler: ChangeHandler<T>, ...change: Parameters<ChangeHandler<T>>): void {
    const failed = (error: unknown) => this.#options.log.error({ key: change[0], err: error }, 'change handler failed')
    try {
      // An async function passes for a handler too.
      const returned: unknown = handler(...change)
      if (returned instanceof Promise) returned.catch(failed)
    } catch (error) {
      failed(error)
    }
  }
}
