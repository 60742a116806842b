import type { PollRequest } from '../api/fleetApi.ts'
import type { Clock } from '../runtime/clock.ts'
import type { Logger } from '../runtime/log.ts'
import type { FleetClient } from './fleet.ts'
import type { GoalBook } from './goals.ts'
import type { Machine } from './machine.ts'

export interface PollTimings {
  /** How long the fleet server may hold a poll while there is nothing new. */
  holdMs: number
  /** When the fleet server does not answer: at random within so long, doubled each time, up to. */
  retryMs: number
  retryMaxMs: number
  /** What is new here is told so long after: several things at once. */
  newsMs: number
}

const defaults: PollTimings = { holdMs: 15_000, retryMs: 10_000, retryMaxMs: 60_000, newsMs: 300 }

interface PollOptions {
  fleet: FleetClient
  machine: Machine
  goals: GoalBook
  clock: Clock
  log: Logger
  request: Omit<PollRequest, 'goals'>
  onAnswer(): void
  timings?: Partial<PollTimings>
}

/** Polls until the signal: reports, takes in what is new, begins what is granted. */
export async function pollUntil(signal: AbortSignal, o: PollOptions): Promise<void> {
  const timings = { ...defaults, ...o.timings }
  let failures = 0
  while (!signal.aborted) {
    const askedMs = o.clock.monotonic()
    let waitMs: number
    const news = new AbortController()
    try {
      const request = { ...o.request, goals: await o.machine.report(), waitMs: timings.holdMs }
      // What this machine has to say doesn't wait for what it is told.
      void o.machine.news().then(async () => {
        await o.clock.sleep(timings.newsMs, signal).catch(() => {})
        news.abort()
      })
      const answer = await o.fleet.poll(request, AbortSignal.any([signal, news.signal]))
      o.onAnswer()
      failures = 0
      waitMs = answer.pollAfterMs
      await o.goals.take(answer.index, answer.goals)
      // A grant's time counts from when we asked: it was given after that.
      await o.machine.act(answer.grants, askedMs)
    } catch (error) {
      if (signal.aborted) return
      if (news.signal.aborted) continue
      // At random from the start: when a server dies, all machines it held find out at once.
      waitMs = Math.random() * Math.min(timings.retryMs * 2 ** failures++, timings.retryMaxMs)
      o.log.error({ err: error, failures }, 'poll failed')
    }
    // No news while the server is away: that many agents would not let it come back.
    const woken = failures === 0 ? AbortSignal.any([signal, news.signal]) : signal
    await o.clock.sleep(waitMs * (0.8 + 0.4 * Math.random()), woken).catch(() => {})
  }
}
