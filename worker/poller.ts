import { type ClaimedJob, type ClaimRequest, claimAnswer } from '../api/workerApi.ts'
import type { ApiClient } from '../runtime/apiClient.ts'
import type { Clock } from '../runtime/clock.ts'
import type { Logger } from '../runtime/log.ts'

export interface PollerOptions {
  hub: ApiClient
  clock: Clock
  log: Logger
}

export interface Claimed {
  job: ClaimedJob
  /** Monotonic: when this poll was first sent. The hub's lease can't have begun earlier. */
  askedAt: number
}

const backOffMaxMs = 15_000
/** An answer is waited for so long once the worker is to stop. */
const lastAnswerMs = 3000

/** Asks the hub for jobs. A poll without an answer is repeated under its id, so a job claimed by it is not lost. */
export class Poller {
  readonly #options: PollerOptions
  #pollId = 1
  #lastPollId = 0
  #failures = 0
  #askedAt: number | undefined
  #pauseMs = 0
  #answered = false

  constructor(options: PollerOptions) {
    this.#options = options
  }

  /** The last poll whose answer was processed. */
  get lastPollId(): number {
    return this.#lastPollId
  }

  /** Whether the hub answered the last poll that has ended. */
  get answered(): boolean {
    return this.#answered
  }

  /**
   * One poll, after the pause that the last one asked for; the job, when there was one. `hold` is called with it before
   * `lastPollId` moves on, so that no probe in between sees the one without the other.
   */
  async next(
    claimer: Omit<ClaimRequest, 'pollId'>,
    signal: AbortSignal,
    hold: (job: ClaimedJob) => void,
  ): Promise<Claimed | undefined> {
    const { hub, clock, log } = this.#options
    try {
      await clock.sleep(this.#pauseMs * (0.8 + 0.4 * Math.random()), signal)
    } catch {
      return undefined
    }
    this.#askedAt ??= clock.monotonic()
    const askedAt = this.#askedAt
    const patience = new AbortController()
    const lose = () => setTimeout(() => patience.abort(signal.reason), lastAnswerMs).unref()
    signal.addEventListener('abort', lose, { once: true })
    try {
      const { job, pollAfterMs } = await hub.request('POST', '/v1/worker/claim', {
        // The first is answered at once, for the worker is ready when it is.
        body: { ...claimer, pollId: this.#pollId, ...(!this.#answered && { holdMs: 0 }) },
        schema: claimAnswer,
        // A claim under way is waited for: what it brings is handed back.
        signal: patience.signal,
      })
      if (job) hold(job)
      this.#lastPollId = this.#pollId++
      this.#askedAt = undefined
      this.#failures = 0
      this.#pauseMs = pollAfterMs
      this.#answered = true
      return job && { job, askedAt }
    } catch (error) {
      if (signal.aborted) return undefined
      this.#answered = false
      this.#failures++
      this.#pauseMs = Math.min(500 * 2 ** (this.#failures - 1), backOffMaxMs)
      log.error({ err: error, failures: this.#failures }, 'the hub does not answer')
      return undefined
    } finally {
      signal.removeEventListener('abort', lose)
    }
  }
}
