/**
 * A worker whose builds only take time: the real poller, lease and probe, over hubs that come and go. Appends each finish
 * that a hub accepted to a journal, as `job token`; tries to finish also what it lost, as a zombie would.
 */
import { appendFileSync } from 'node:fs'
import type { ClaimedJob, JobClaim, ProbeAnswer } from '../../api/workerApi.ts'
import { ApiClient } from '../../runtime/apiClient.ts'
import { systemClock as clock } from '../../runtime/clock.ts'
import { createLogger } from '../../runtime/log.ts'
import { Metrics } from '../../runtime/metrics.ts'
import { createServer, listen } from '../../runtime/server.ts'
import { Lease } from '../../worker/lease.ts'
import { Poller } from '../../worker/poller.ts'

const {
  CHAOS_NAME: name = '',
  CHAOS_HUBS: hubs = '',
  CHAOS_JOURNAL: journal = '',
  CHAOS_BUILD_MS: buildMs,
} = process.env
const log = createLogger('chaos', 'silent')
const never = new AbortController().signal

/** As a Service does: another replica when one does not answer. */
class AnyHub extends ApiClient {
  readonly #others: ApiClient[]
  #at = 0

  constructor(urls: string[]) {
    super({ baseUrl: urls[0] ?? '', token: () => 'worker' })
    this.#others = urls.map((baseUrl) => new ApiClient({ baseUrl, token: () => 'worker' }))
  }

  override async request<T>(...args: Parameters<ApiClient['request']>): Promise<T> {
    const hub = this.#others[this.#at % this.#others.length]
    if (!hub) throw new Error('no hub')
    try {
      return (await hub.request(...args)) as T
    } catch (error) {
      this.#at++
      throw error
    }
  }
}

const hub = new AnyHub(hubs.split(','))
const poller = new Poller({ hub, clock, log })
let held: JobClaim | undefined
/** Until then it does not answer probes. */
let deafUntilMs = 0
process.on('SIGUSR2', () => {
  deafUntilMs = clock.monotonic() + 5000
})

const server = createServer({ log, metrics: new Metrics() })
server.get('/probe', async (): Promise<ProbeAnswer> => {
  if (clock.monotonic() < deafUntilMs) throw new Error('deaf')
  return { worker: name, lastPollId: poller.lastPollId, held: held ? [held] : [] }
})
const { url: probeUrl } = await listen(server, { host: '127.0.0.1', port: 0 })

async function build(job: ClaimedJob, askedAt: number): Promise<void> {
  const lease = new Lease({ job, hub, clock, log, askedAt, onCancel: () => undefined })
  const done = new AbortController()
  const kept = lease.keep(done.signal)
  try {
    await clock.sleep(Math.random() * Number(buildMs), lease.signal)
    await persistently(lease, () => lease.call('built', {}))
    await persistently(lease, () => lease.call('finish', { outcome: { result: 'Built' } }))
    appendFileSync(journal, `${job.jobId} ${job.token}\n`)
  } catch {
    void zombie({ jobId: job.jobId, token: job.token })
  } finally {
    done.abort()
    await kept
    held = undefined
  }
}

/** Tries to finish what it lost, when somebody else may have it, or may have finished it. */
async function zombie(claim: JobClaim): Promise<void> {
  for (let attempt = 0; attempt < 3; attempt++) {
    await clock.sleep(Math.random() * 4000)
    const finished = hub.request('POST', '/v1/worker/finish', { body: { ...claim, outcome: { result: 'Built' } } })
    await finished.then(
      () => appendFileSync(journal, `${claim.jobId} ${claim.token}\n`),
      () => undefined,
    )
  }
}

/** Again and again, as long as the lease lasts: an answer may be lost. */
async function persistently(lease: Lease, call: () => Promise<unknown>): Promise<void> {
  for (;;) {
    try {
      await call()
      return
    } catch (error) {
      lease.check()
      await clock.sleep(100, lease.signal)
      if (lease.signal.aborted) throw error
    }
  }
}

for (;;) {
  const claimed = await poller.next({ worker: name, probeUrl, probeSecret: 's'.repeat(32) }, never, (job) => {
    held = { jobId: job.jobId, token: job.token }
  })
  if (claimed) await build(claimed.job, claimed.askedAt)
}
