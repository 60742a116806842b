import { createHmac } from 'node:crypto'
import type { Clock } from '../../runtime/clock.ts'
import type { Logger } from '../../runtime/log.ts'
import type { Counter, Metrics } from '../../runtime/metrics.ts'

/** What is posted, as JSON. */
export interface AlarmNote {
  alarm: 'WorkerSilent'
  /**
   * `raised` at least once for each alarm: again by a hub that began to lead while it stands. A `resolved` may be missing
   * where another began to lead just then.
   */
  state: 'raised' | 'resolved'
  worker: string
  class: string
  silentSeconds: number
  /** RFC 3339. */
  lastSeen: string
  /** Of the hub. */
  namespace: string
  message: string
}

export interface AlarmWebhookOptions {
  url: string
  /** Signs the body: `X-Hub-Signature-256: sha256=<HMAC, hex>`, as the webhooks that the hub takes. */
  secret?: string | undefined
  log: Logger
  metrics: Metrics
  clock: Clock
}

const attempts = 8
const timeoutMs = 10_000
const longestPauseMs = 60_000
/** Notes that wait while the receiver is away. */
const maxWaiting = 1000

/** Posts notes one after the other, each up to 8 times over four minutes; what is not taken then is logged. */
export class AlarmWebhook {
  readonly #o: AlarmWebhookOptions
  readonly #failures: Counter
  readonly #waiting: AlarmNote[] = []
  #wake = Promise.withResolvers<void>()

  constructor(options: AlarmWebhookOptions) {
    this.#o = options
    this.#failures = options.metrics.counter('alarm_webhook_failures_total', 'Alarm notes that nobody took.')
  }

  send(note: AlarmNote): void {
    if (this.#waiting.length >= maxWaiting) this.#lost(this.#waiting.shift(), 'too many wait')
    this.#waiting.push(note)
    this.#wake.resolve()
  }

  /** Delivers until the signal. What waits then is not lost: who leads next raises alarms that stand anew. */
  async run(signal: AbortSignal): Promise<void> {
    this.#waiting.length = 0
    signal.addEventListener('abort', () => this.#wake.resolve(), { once: true })
    while (!signal.aborted) {
      const note = this.#waiting.shift()
      if (note) await this.#deliver(note, signal)
      else {
        this.#wake = Promise.withResolvers()
        await this.#wake.promise
      }
    }
  }

  async #deliver(note: AlarmNote, signal: AbortSignal): Promise<void> {
    const { clock, log } = this.#o
    for (let attempt = 1; attempt <= attempts && !signal.aborted; attempt++) {
      try {
        await this.#post(JSON.stringify(note), AbortSignal.any([signal, AbortSignal.timeout(timeoutMs)]))
        return
      } catch (error) {
        log.info({ err: error, attempt, worker: note.worker }, 'alarm note not taken')
        if (attempt === attempts) this.#lost(note, 'every attempt failed')
        else await clock.sleep(Math.min(1000 * 2 ** attempt, longestPauseMs), signal).catch(() => undefined)
      }
    }
  }

  async #post(body: string, signal: AbortSignal): Promise<void> {
    const { url, secret } = this.#o
    const signature = secret && `sha256=${createHmac('sha256', secret).update(body).digest('hex')}`
    const answer = await fetch(url, {
      method: 'POST',
      body,
      headers: { 'content-type': 'application/json', ...(signature && { 'x-hub-signature-256': signature }) },
      // Somewhere else it was not meant to go.
      redirect: 'error',
      signal,
    })
    await answer.body?.cancel()
    if (!answer.ok) throw new Error(`status ${answer.status}`)
  }

  #lost(note: AlarmNote | undefined, why: string): void {
    this.#failures.inc()
    this.#o.log.error({ worker: note?.worker, state: note?.state, why }, 'alarm note given up')
  }
}
