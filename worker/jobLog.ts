import { Buffer } from 'node:buffer'
import type { ClaimedJob } from '../api/workerApi.ts'
import { retry } from '../artifacts/parallel.ts'
import type { Clock } from '../runtime/clock.ts'
import type { Logger } from '../runtime/log.ts'
import { KeptLog, type LogChunk } from './keptLog.ts'
import type { Lease } from './lease.ts'
import { Mask } from './mask.ts'

export interface JobLogOptions {
  job: ClaimedJob
  lease: Lease
  clock: Clock
  log: Logger
  /** Default: 1 s. */
  intervalMs?: number
}

/** For all that is left at the end. */
const restMs = 15_000
const secretName = /SECRET|TOKEN|PASSWORD|PASSWD|CREDENTIAL|KEY/i

/** What a job prints, without its secrets, on its way to the hub. */
export class JobLog {
  readonly #options: JobLogOptions
  readonly #mask: Mask
  readonly #kept = new KeptLog()
  /** Taken, and not yet known to be with the hub. */
  #waiting: LogChunk | undefined

  constructor(options: JobLogOptions) {
    this.#options = options
    this.#mask = new Mask(secretsOf(options.job))
  }

  output(bytes: Buffer): void {
    this.#kept.add(this.#mask.push(bytes))
  }

  /** A line of the worker's own. */
  note(text: string): void {
    this.output(Buffer.from(`[shoal] ${text}\n`))
  }

  mask(text: string): string {
    return this.#mask.text(text)
  }

  /** The last lines of what was printed. */
  lastOutput(maxBytes: number): string {
    const text = this.#kept.lastText(maxBytes)
    const isCut = Buffer.byteLength(text) >= maxBytes
    const lines = (isCut ? text.slice(text.indexOf('\n') + 1) : text).split('\n')
    return lines
      .filter((line) => !line.startsWith('[shoal] '))
      .join('\n')
      .trim()
  }

  /**
   * Once an interval sends what was printed until then, so that a worker that dies takes no more of it along; after the
   * signal all the rest. What the hub doesn't take in the end is lost.
   */
  async send(signal: AbortSignal): Promise<void> {
    const { clock, intervalMs = 1000, lease, log } = this.#options
    while (!signal.aborted && !lease.signal.aborted) {
      const begun = clock.monotonic()
      // What it doesn't take now it is offered again.
      await this.#sendTo(this.#kept.printedBytes, (chunk) => this.#post(chunk)).catch(() => undefined)
      await clock.sleep(Math.max(0, intervalMs - (clock.monotonic() - begun)), signal).catch(() => undefined)
    }
    this.#kept.add(this.#mask.end())
    this.#kept.end()
    const inTime = AbortSignal.any([lease.signal, AbortSignal.timeout(restMs)])
    try {
      await this.#sendTo(this.#kept.printedBytes, (chunk) => retry(20, inTime, () => this.#post(chunk)))
    } catch (error) {
      if (!lease.signal.aborted) log.error({ err: error }, 'the end of a log was not sent')
    }
  }

  async #sendTo(end: number, send: (chunk: LogChunk) => Promise<void>): Promise<void> {
    for (;;) {
      this.#waiting ??= this.#kept.next()
      if (!this.#waiting) return
      const { offset } = this.#waiting
      await send(this.#waiting)
      this.#waiting = undefined
      if (offset >= end) return
    }
  }

  async #post(chunk: LogChunk): Promise<void> {
    await this.#options.lease.call('log', chunk, { timeoutMs: 5000 })
  }
}

function secretsOf({ build, source }: ClaimedJob): string[] {
  const named = build.env.filter(({ name }) => secretName.test(name)).map(({ value }) => value)
  const inUrl = /^[a-z+]+:\/\/[^/@:]*:([^/@]+)@/i.exec(source.url)?.[1]
  return [...named, source.password, inUrl].filter((secret) => secret !== undefined)
}
