import type { PollRequest } from '../api/fleetApi.ts'
import type { Clock } from '../runtime/clock.ts'
import type { Logger } from '../runtime/log.ts'
import type { FleetClient } from './fleet.ts'
import type { GoalBook } from './goals.ts'
import type { Machine } from './machine.ts'

export interface PollTimings {
  /** When the fleet server does not answer: from, doubled, to. */
  retryMs: number
  retryMaxMs: number
  /** News is told at once, but never sooner than so long after the last poll. */
  newsMs: number
}

const defaults: PollTimings = { retryMs: 1000, retryMaxMs: 60_000, newsMs: 300 }

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
    try {
      const request = { ...o.request, goals: await o.machine.report() }
      const answer = await o.fleet.poll(request, signal)
      o.onAnswer()
      failures = 0
      waitMs = answer.pollAfterMs
      await o.goals.take(answer.index, answer.goals)
      // A grant's time counts from when we asked: it was given after that.
      await o.machine.act(answer.grants, askedMs)
    } catch (error) {
      if (signal.aborted) return
      waitMs = Math.min(timings.retryMs * 2 ** failures++, timings.retryMaxMs)
      o.log.error({ err: error, failures }, 'poll failed')
    }
    const jitteredMs = waitMs * (0.8 + 0.4 * Math.random())
    await o.clock.sleep(Math.min(timings.newsMs, jitteredMs), signal).catch(() => {})
    // No news while the server is away: that many agents would not let it come back.
    const news = failures === 0 ? o.machine.news() : undefined
    await pause(jitteredMs - timings.newsMs, { news, clock: o.clock, signal })
  }
}

async function pause(ms: number, o: { news: Promise<void> | undefined; clock: Clock; signal: AbortSignal }) {
  if (ms <= 0) return
  const woken = new AbortController()
  void o.news?.then(() => woken.abort())
  await o.clock.sleep(ms, AbortSignal.any([o.signal, woken.signal])).catch(() => {})
}
