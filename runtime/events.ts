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

/** Reports Events about objects; the same one is sent once in `quietMs`. Never throws and never makes anyone wait. */
export class EventRecorder {
  readonly #cluster: Cluster
  readonly #component: string
  readonly #log: Logger
  readonly #clock: Clock
  readonly #sent = new Map<string, number>()
  static readonly quietMs = 300_000

  constructor(options: { cluster: Cluster; component: string; log: Logger; clock?: Clock }) {
    this.#cluster = options.cluster
    this.#component = options.component
    this.#log = options.log
    this.#clock = options.clock ?? systemClock
  }

  /** `reason` is one stable CamelCase word. */
  record(subject: Subject, type: 'Normal' | 'Warning', reason: string, note: string): void {
    const now = this.#clock.monotonic()
    const key = [subject.kind, subject.metadata.namespace, subject.metadata.name, reason, note].join('\0')
    const last = this.#sent.get(key)
    if (last !== undefined && now - last < EventRecorder.quietMs) return
    if (this.#sent.size > 10_000) this.#sent.clear()
    this.#sent.set(key, now)
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
    this.#cluster
      .create(core.Event, event)
      .catch((error: unknown) => this.#log.debug({ err: error, reason }, 'event not sent'))
  }
}
