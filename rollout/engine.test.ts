import fc from 'fast-check'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import type { MachineCounts, Wave } from '../api/goalState.ts'
import { advance, type Progress, type RegionReport } from './engine.ts'
import { regionsOf, targetCount, targetOf } from './plan.ts'

const test = suite('rollout engine')

const waves: Wave[] = [
  { regions: ['eu'], machines: 1, soak: '2s' },
  { regions: ['eu'], percent: 100, soak: '2s' },
  { regions: ['*'], percent: 100, soak: '0s' },
]
const rollout = { waves, failureThreshold: '2%', progressDeadline: '10s' } as const
const start: Progress = { waveIndex: 0, soakedMs: 0, progressedAtMs: 0, reached: 0 }
const none: MachineCounts = { desired: 4, fetched: 4, updated: 0, healthy: 0, failed: 0, unreachable: 0 }
const report = (region: string, counts: Partial<MachineCounts> = {}, fresh = true): RegionReport => ({
  region,
  counts: { ...none, ...counts },
  fresh,
  halted: false,
})
const step = (progress: Progress, reports: RegionReport[], nowMs = 1000, elapsedMs = 1000) =>
  advance(rollout, progress, { reports, nowMs, elapsedMs })

test('a target is the highest of the waves so far', () => {
  assert.equal(targetOf(waves, -1, 'eu'), { machines: 0, percent: 0 })
  assert.equal(targetOf(waves, 0, 'eu'), { machines: 1, percent: 0 })
  assert.equal(targetOf(waves, 0, 'us'), { machines: 0, percent: 0 })
  assert.equal(targetOf(waves, 1, 'eu'), { machines: 1, percent: 100 })
  assert.equal(targetOf(waves, 2, 'us'), { machines: 0, percent: 100 })
  assert.equal(regionsOf(waves, ['us', 'eu']), ['eu', 'us'])
})

test('a share of few machines is at least one, and never more than there are', () => {
  assert.is(targetCount({ machines: 0, percent: 1 }, 4), 1)
  assert.is(targetCount({ machines: 9, percent: 0 }, 4), 4)
  assert.is(targetCount({ machines: 0, percent: 50 }, 0), 0)
})

test('the next wave begins when the wave is complete and has soaked', () => {
  const waiting = step(start, [report('eu'), report('us')])
  assert.is(waiting.verdict.is, 'Progressing')
  const soaking = step(waiting.progress, [report('eu', { updated: 1, healthy: 1 }), report('us')])
  assert.is(soaking.verdict.is, 'Soaking')
  assert.is(soaking.progress.waveIndex, 0)
  const done = step(soaking.progress, [report('eu', { updated: 1, healthy: 1 }), report('us')])
  assert.is(done.progress.waveIndex, 1)
})

test('time in which the engine could not act is not soak', () => {
  const { progress } = step(start, [report('eu', { updated: 1, healthy: 1 })], 100_000, 0)
  assert.is(progress.soakedMs, 0)
  assert.is(progress.waveIndex, 0)
})

test('a machine that gets unhealthy while it soaks begins the soak anew', () => {
  const soaking = step(start, [report('eu', { updated: 1, healthy: 1 })])
  assert.is(soaking.progress.soakedMs, 1000)
  assert.is(step(soaking.progress, [report('eu', { updated: 1, healthy: 0 })]).progress.soakedMs, 0)
})

test('a stale report completes nothing', () => {
  const { verdict } = step(start, [report('eu', { updated: 1, healthy: 1 }, false)])
  assert.is(verdict.is, 'Progressing')
})

test('of few machines, any failure halts', () => {
  assert.is(step(start, [report('eu', { failed: 1 })]).verdict.is, 'Failed')
})

test('of many machines, as many may fail as the threshold says', () => {
  const many = (failed: number) => [report('eu', { desired: 1000, updated: 500, healthy: 480, failed })]
  assert.is.not(step(start, many(20)).verdict.is, 'Failed')
  assert.is(step(start, many(21)).verdict.is, 'Failed')
})

test('machines that can’t be reached don’t hold up a wave', () => {
  const everywhere = { ...start, waveIndex: 2 }
  const { verdict } = step(everywhere, [
    report('eu', { updated: 3, healthy: 3, unreachable: 1 }),
    report('us', { healthy: 4 }),
  ])
  assert.is(verdict.is, 'Complete')
})

test('without progress for progressDeadline it is late, and goes on when there is some', () => {
  const late = step(
    start,
    [report('eu')].map((r) => ({ ...r, counts: { ...none, fetched: 0 } })),
    10_001,
  )
  assert.is(late.verdict.is, 'Late')
  assert.is(step(late.progress, [report('eu', { fetched: 1 })], 10_002).verdict.is, 'Progressing')
})

test('whatever is reported, waves go one by one and never back', () => {
  const count = fc.nat(60)
  const counts = fc.record({
    desired: count,
    fetched: count,
    updated: count,
    healthy: count,
    failed: fc.nat(2),
    unreachable: count,
  })
  const reports = fc.array(fc.record({ counts, fresh: fc.boolean() }), { minLength: 1, maxLength: 3 })
  fc.assert(
    fc.property(fc.array(reports, { maxLength: 30 }), (steps) => {
      let progress = start
      for (const [index, views] of steps.entries()) {
        const regions = views.map((view, at) => ({ region: ['eu', 'us', 'ap'][at] ?? '', halted: false, ...view }))
        const { progress: next, verdict } = step(progress, regions, index * 1000)
        assert.ok(next.waveIndex === progress.waveIndex || next.waveIndex === progress.waveIndex + 1)
        if (verdict.is === 'Failed') assert.equal(next, progress)
        progress = next
      }
    }),
  )
})

test.run()
