import { type Progress, standsStill, type Verdict } from '../../rollout/engine.ts'
import type { Metrics } from '../../runtime/metrics.ts'
import type { GoalStatus } from './status.ts'

type Times = Pick<GoalStatus, 'waveSince' | 'standsSince' | 'stoodMs'>

/** How long waves take, by what the time went to. What is kept of the current one is in the status, so that any hub goes on. */
export class WaveTimes {
  readonly #seconds
  readonly #ended

  constructor(metrics: Metrics) {
    this.#seconds = metrics.histogram(
      'rollout_wave_duration_seconds',
      'Time of a wave that is complete: changing machines, soaking, standing still.',
      ['part'],
    )
    this.#ended = metrics.counter('rollouts_total', 'Rollouts by how they ended.', ['outcome'])
  }

  /** After a step; what the status keeps from now on. */
  step(before: GoalStatus, step: { progress: Progress; verdict: Verdict }, nowMs: number): Times {
    const now = new Date(nowMs).toISOString()
    const waveSince = before.waveSince ?? before.effective?.since ?? now
    const { standsSince, stoodMs = 0 } = before
    if (standsStill(step.verdict)) return { waveSince, standsSince: standsSince ?? now, stoodMs }
    const allStoodMs = stoodMs + (standsSince === undefined ? 0 : nowMs - Date.parse(standsSince))
    if (step.progress.waveIndex === (before.waveIndex ?? 0))
      return { waveSince, standsSince: undefined, stoodMs: allStoodMs }
    const soakedMs = before.soakedMs ?? 0
    this.#observe('stand', allStoodMs)
    this.#observe('soak', soakedMs)
    this.#observe('change', nowMs - Date.parse(waveSince) - allStoodMs - soakedMs)
    return { waveSince: now, standsSince: undefined, stoodMs: 0 }
  }

  ended(outcome: 'Succeeded' | 'Failed'): void {
    this.#ended.inc({ outcome })
  }

  #observe(part: 'change' | 'soak' | 'stand', ms: number): void {
    this.#seconds.observe({ part }, Math.max(0, ms) / 1000)
  }
}
