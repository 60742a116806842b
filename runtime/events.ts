import { randomBytes } from 'node:crypto'
import { type Clock, systemClock } from './clock.ts'
import type { Cluster } from './cluster.ts'
import { core } from './core.ts'
import type { Logger } from './log.ts'

export interface Subject {
  apiVersion: string
  kind: string
  metadata: { name: string; namespace?: string | undefined; uid?: string | undefined }
}

interface Recent {
  sinceMs: number
  notes: Set<string>
}

/**
 * Reports Events about objects. The same one is sent once in `quietMs`, and of one reason about one object at most
 * `notesPerReason` notes, so that a message with a number in it doesn't fill etcd. Never throws, never makes anyone
 * wait; while the API server is away, events are lost rather than heaped up.
 */
export class EventRecorder {
  readonly #cluster: Cluster
  readonly #component: string
  readonly #log: Logger
  readonly #clock: Clock
  readonly #recent = new Map<string, Recent>()
  #sending = 0
  static readonly quietMs = 300_000
  static readonly notesPerReason = 10

  constructor(options: { cluster: Cluster; component: string; log: Logger; clock?: Clock }) {
    this.#cluster = options.cluster
    this.#component = options.component
    this.#log = options.log
    this.#clock = options.clock ?? systemClock
  }

  /** `reason` is one stable CamelCase word. */
  record(subject: Subject, type: 'Normal' | 'Warning', reason: string, note: string): void {
    if (this.#sending >= 64 || !this.#isNew(subject, reason, note)) return
    const namespace = subject.metadata.namespace ?? 'default'
    const event = {
      metadata: { name: `${subject.metadata.name.slice(0, 200)}.${randomBytes(8).toString('hex')}`, namespace },
      eventTime: new Date(this.#clock.now()).toISOString().replace('Z', '000Z'),
      reportingController: 'shoal.dev/controller',
      reportingInstance: this.#component,
      action: reason,
      reason,
      type,
      note: note.slice(0, 1000),
      regarding: {
        apiVersion: subject.apiVersion,
        kind: subject.kind,
        name: subject.metadata.name,
        namespace: subject.metadata.namespace,
        uid: subject.metadata.uid,
      },
    }
    this.#sending++
    this.#cluster
      .create(core.Event, event)
      .catch((error: unknown) => this.#log.debug({ err: error, reason }, 'event not sent'))
      .finally(() => this.#sending--)
  }

  #isNew({ kind, metadata }: Subject, reason: string, note: string): boolean {
    const now = this.#clock.monotonic()
    const key = [kind, metadata.namespace, metadata.name, metadata.uid, reason].join('\0')
    const known = this.#recent.get(key)
    const recent =
      known && now - known.sinceMs < EventRecorder.quietMs ? known : { sinceMs: now, notes: new Set<string>() }
    if (recent.notes.has(note) || recent.notes.size >= EventRecorder.notesPerReason) return false
    recent.notes.add(note)
    if (this.#recent.size >= 10_000) this.#recent.clear()
    this.#recent.set(key, recent)
    return true
  }
}
