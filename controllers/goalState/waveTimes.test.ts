import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import type { Verdict } from '../../rollout/engine.ts'
import { Metrics } from '../../runtime/metrics.ts'
import type { GoalStatus } from './status.ts'
import { WaveTimes } from './waveTimes.ts'

const test = suite('times of a wave')

test('changing, soaking and standing still are told apart, over hubs that take over', async () => {
  const metrics = new Metrics()
  let status: GoalStatus = { waveIndex: 0, waveSince: new Date(0).toISOString() }
  const step = (second: number, is: Verdict['is'], more: { waveIndex?: number; soakedMs?: number } = {}) => {
    const { waveIndex = status.waveIndex ?? 0, soakedMs = 0 } = more
    // each by another hub
    const times = new WaveTimes(metrics).step(
      status,
      {
        progress: { waveIndex, open: true, soakedMs, waitedMs: 0, reached: 0 },
        verdict: { is, message: '' } as Verdict,
      },
      second * 1000,
    )
    status = { ...status, ...times, waveIndex, soakedMs }
  }
  step(10, 'Progressing')
  step(20, 'Paused')
  const paused = status
  step(25, 'Paused')
  assert.equal(status, paused, 'nothing is written while it stands')
  step(50, 'Progressing')
  step(60, 'Soaking', { soakedMs: 10_000 })
  step(61, 'Progressing', { waveIndex: 1 })
  const { values } = (await metrics.registry.getSingleMetric('shoal_rollout_wave_duration_seconds')?.get()) ?? {
    values: [],
  }
  const sum = (part: string) =>
    (values as { metricName?: string; labels: { part?: string | number }; value: number }[]).find(
      ({ metricName, labels }) => metricName?.endsWith('_sum') && labels.part === part,
    )?.value
  assert.equal([sum('stand'), sum('soak'), sum('change')], [30, 10, 21])
})

test.run()
