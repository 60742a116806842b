const { get } = process.getBuiltinModule('node:http')

import { decodeBencode } from '../api/bencode.ts'
import { ShoalError } from '../api/errors.ts'
import { parseCompactPeers } from './addresses.ts'
import type { Swarm } from './swarm.ts'

const TIMEOUT_MS = 10_000
const FAREWELL_TIMEOUT_MS = 1000
const FIRST_RETRY_MS = 1000
const LAST_RETRY_MS = 60_000
const MAX_ANSWER_BYTES = 1 << 20
/** Trackers that say less are not listened to. */
const LEAST_INTERVAL_MS = 1000

type Event = 'started' | 'completed' | 'stopped' | undefined

interface AnnouncerOptions {
  /** `http:` (BEP 3). */
  url: string
  swarm: Swarm
  log: { info(fields: object, message: string): void }
}

/** Tells an HTTP tracker of a swarm, and the swarm of the peers it names; until disposed, when it says goodbye. */
export class Announcer implements AsyncDisposable {
  readonly #o: AnnouncerOptions
  readonly #stop = new AbortController()
  readonly #running: Promise<void>

  /** @throws ShoalError `Invalid` on a URL that is not `http:`. */
  constructor(o: AnnouncerOptions) {
    if (!URL.canParse(o.url) || new URL(o.url).protocol !== 'http:')
      throw new ShoalError('Invalid', `The tracker ${JSON.stringify(o.url)} is not an http: URL.`)
    this.#o = o
    this.#running = this.#run()
  }

  async #run(): Promise<void> {
    const { swarm } = this.#o
    const stopped = new Promise<void>((resolve) => {
      this.#stop.signal.addEventListener('abort', () => resolve())
    })
    let wasComplete = swarm.missingCount === 0
    let event: Event = 'started'
    let failures = 0
    while (!this.#stop.signal.aborted) {
      let waitMs: number
      try {
        waitMs = await this.#announce(event, AbortSignal.any([this.#stop.signal, AbortSignal.timeout(TIMEOUT_MS)]))
        event = undefined
        failures = 0
      } catch (error) {
        if (this.#stop.signal.aborted) return
        waitMs = Math.min(LAST_RETRY_MS, FIRST_RETRY_MS * 2 ** failures++) * (0.5 + Math.random())
        this.#o.log.info({ url: this.#o.url, err: error }, 'the tracker did not answer')
      }
      const timer = Promise.withResolvers<void>()
      const handle = setTimeout(timer.resolve, waitMs)
      const waits = [timer.promise, stopped]
      // those who look for pieces are told of one more who has them all
      if (!wasComplete) waits.push(swarm.done.catch(() => timer.promise))
      await Promise.race(waits)
      clearTimeout(handle)
      if (!wasComplete && swarm.missingCount === 0) {
        wasComplete = true
        event = 'completed'
      }
    }
  }

  /** @returns when to come again, ms. */
  async #announce(event: Event, signal: AbortSignal): Promise<number> {
    const { swarm, url } = this.#o
    const left = swarm.sizeBytes - swarm.have().bytes
    const { downloadedFromPeersBytes, uploadedBytes } = swarm.stats()
    const query = [
      `info_hash=${percentEncoded(Buffer.from(swarm.infoHash, 'hex'))}`,
      `peer_id=${percentEncoded(swarm.peerId)}`,
      `port=${swarm.listenPort}&uploaded=${uploadedBytes}&downloaded=${downloadedFromPeersBytes}&left=${left}&compact=1`,
      ...(event ? [`event=${event}`] : []),
    ].join('&')
    const answer = decodeBencode(await fetchBytes(`${url}${url.includes('?') ? '&' : '?'}${query}`, signal))
    const fields = answer instanceof Map ? answer : new Map()
    const reason = fields.get('failure reason')
    if (reason instanceof Uint8Array)
      throw new ShoalError('Unavailable', `The tracker refuses: ${Buffer.from(reason).toString()}`)
    const peers = fields.get('peers')
    if (peers instanceof Uint8Array) swarm.addPeers(parseCompactPeers(peers))
    const interval = fields.get('interval')
    return Math.max(LEAST_INTERVAL_MS, (typeof interval === 'number' ? interval : 60) * 1000)
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#stop.abort()
    await this.#running
    await this.#announce('stopped', AbortSignal.timeout(FAREWELL_TIMEOUT_MS)).catch(() => {})
  }
}

/** A GET by `node:http`: `fetch` costs a process that starts 60 ms more. */
function fetchBytes(url: string, signal: AbortSignal): Promise<Buffer> {
  return new Promise((resolve, reject) => {
    const request = get(url, { signal, agent: false }, (response) => {
      const chunks: Buffer[] = []
      let bytes = 0
      response.on('data', (chunk: Buffer) => {
        bytes += chunk.length
        chunks.push(chunk)
        if (bytes > MAX_ANSWER_BYTES) request.destroy(new Error('the answer is too long'))
      })
      response.on('error', reject)
      response.on('end', () => {
        if (response.statusCode === 200) resolve(Buffer.concat(chunks))
        else reject(new ShoalError('Unavailable', `The tracker answered ${response.statusCode}.`))
      })
    })
    request.on('error', reject)
  })
}

function percentEncoded(bytes: Uint8Array): string {
  return Array.from(bytes, (byte) => `%${byte.toString(16).padStart(2, '0')}`).join('')
}
