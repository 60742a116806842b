import fc from 'fast-check'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import type { MachineCounts, Wave } from '../api/goalState.ts'
import { advance, enterWave, type Gates, openWave, type Progress, type RegionReport } from './engine.ts'
import { planOf, regionsOf, targetCount, targetOf, wavesOf } from './plan.ts'

const test = suite('rollout engine')

const waves: Wave[] = [
  { regions: ['eu'], machines: 1, soak: '2s' },
  { regions: ['eu'], percent: 100, soak: '2s' },
  { regions: ['*'], percent: 100, soak: '0s' },
]
const rollout = { waves, failureThreshold: '2%', progressDeadline: '10s' } as const
const start: Progress = { waveIndex: 0, open: true, soakedMs: undefined, waitedMs: 0, reached: 0 }
const none: MachineCounts = { desired: 4, fetched: 4, updated: 0, healthy: 0, failed: 0, unreachable: 0 }
const report = (region: string, counts: Partial<MachineCounts> = {}, fresh = true): RegionReport => ({
  region,
  counts: { ...none, ...counts },
  fresh,
  halted: false,
  manySilent: false,
})
const step = (progress: Progress, reports: RegionReport[], elapsedMs = 1000, gates: Partial<Gates> = {}) =>
  advance(rollout, progress, {
    reports,
    elapsedMs,
    gates: { approved: new Set(), promoted: new Set(), ...gates },
  })
const wellIn = (region: string) => report(region, { updated: 1, healthy: 1 })

test('a target is the highest of the waves so far', () => {
  assert.equal(targetOf(waves, -1, 'eu'), { machines: 0, percent: 0 })
  assert.equal(targetOf(waves, 0, 'eu'), { machines: 1, percent: 0 })
  assert.equal(targetOf(waves, 0, 'us'), { machines: 0, percent: 0 })
  assert.equal(targetOf(waves, 1, 'eu'), { machines: 1, percent: 100 })
  assert.equal(targetOf(waves, 2, 'us'), { machines: 0, percent: 100 })
  assert.equal(regionsOf({ waves }, ['us', 'eu']), ['eu', 'us'])
  assert.equal(regionsOf({}, ['us', 'eu']), ['eu', 'us'])
})

test('a plan says what each wave changes where', () => {
  const plan = planOf(waves, [
    { name: 'eu', desired: 10 },
    { name: 'us', desired: 4 },
    { name: 'ap', desired: 0 },
  ])
  assert.equal(
    plan.map(({ wave, region, changes, of }) => [wave, region, changes, of]),
    [
      [1, 'eu', 1, 1],
      [2, 'eu', 9, 10],
      [3, 'us', 4, 4],
    ],
  )
})

test('a share of few machines is at least one, and never more than there are', () => {
  assert.is(targetCount({ machines: 0, percent: 1 }, 4), 1)
  assert.is(targetCount({ machines: 9, percent: 0 }, 4), 4)
  assert.is(targetCount({ machines: 0, percent: 50 }, 0), 0)
})

test('the next wave begins when the wave is complete and has soaked', () => {
  const waiting = step(start, [report('eu'), report('us')])
  assert.is(waiting.verdict.is, 'Progressing')
  let { progress } = waiting
  const soaked = [0, 1000, 1999].map((ms) => {
    const soaking = step(progress, [wellIn('eu'), report('us')], ms - (progress.soakedMs ?? 0))
    progress = soaking.progress
    return [soaking.verdict.is, progress.waveIndex, progress.soakedMs]
  })
  assert.equal(
    soaked,
    [0, 1000, 1999].map((ms) => ['Soaking', 0, ms]),
  )
  assert.is(step(progress, [wellIn('eu'), report('us')], 1).progress.waveIndex, 1)
})

test('time before the wave was seen complete is not soak', () => {
  const { progress } = step(start, [wellIn('eu')], 60_000)
  assert.equal([progress.waveIndex, progress.soakedMs], [0, 0])
})

test('a machine that gets unhealthy while it soaks begins the soak anew', () => {
  const soaking = step(step(start, [wellIn('eu')]).progress, [wellIn('eu')])
  assert.is(soaking.progress.soakedMs, 1000)
  assert.is(step(soaking.progress, [report('eu', { updated: 1, healthy: 0 })]).progress.soakedMs, undefined)
})

test('while a region is silent the clocks stand: nothing is complete, nothing is late, and what soaked is kept', () => {
  const { progress } = step(step(start, [wellIn('eu')]).progress, [wellIn('eu')])
  const silent = step(progress, [report('eu', { updated: 1, healthy: 1 }, false)], 3_600_000)
  assert.is(silent.verdict.is, 'RegionSilent')
  assert.equal(silent.progress, progress)
  assert.is(step(silent.progress, [wellIn('eu')]).progress.waveIndex, 1)
})

test('paused or frozen, nothing begins and the clocks stand; what was told stays', () => {
  for (const is of ['Paused', 'Frozen'] as const) {
    const stopped = { is, message: 'for now' }
    const { progress, verdict } = step(start, [wellIn('eu')], 3_600_000, { stopped })
    assert.equal([verdict.is, progress], [is, start])
    const shut = { ...start, open: false }
    assert.is(openWave(enterWave(rollout, shut, { approved: new Set(), promoted: new Set(), stopped })), -1)
  }
})

test('failures count while it is paused', () => {
  const stopped = { is: 'Paused', message: 'for now' } as const
  assert.is(step(start, [report('eu', { failed: 1 })], 1000, { stopped }).verdict.is, 'Failed')
})

test('a wave that needs approval waits for it, with the targets of the waves before', () => {
  const waves: Wave[] = [
    { regions: ['eu'], machines: 1, soak: '0s' },
    { regions: ['*'], percent: 100, soak: '0s', approval: true },
  ]
  const careful = { ...rollout, waves }
  const at = (progress: Progress, approved: number[], elapsedMs = 1000) =>
    advance(careful, progress, {
      ...{ reports: [wellIn('eu'), report('us')], elapsedMs },
      gates: { approved: new Set(approved), promoted: new Set() },
    })
  const waiting = at(start, [])
  assert.is(waiting.verdict.is, 'AwaitingApproval')
  assert.equal([waiting.progress.waveIndex, openWave(waiting.progress)], [1, 0])
  const late = at(waiting.progress, [0], 3_600_000)
  assert.equal([late.verdict.is, late.progress.waitedMs], ['AwaitingApproval', 0])
  const begun = at(late.progress, [1])
  assert.equal([begun.verdict.is, openWave(begun.progress)], ['Progressing', 1])
})

test('a promoted wave does not soak, but has to be complete', () => {
  const promoted = new Set([0])
  assert.is(step(start, [report('eu')], 1000, { promoted }).progress.waveIndex, 0)
  assert.is(step(start, [wellIn('eu')], 0, { promoted }).progress.waveIndex, 1)
})

test('a check that does not answer stops the soak, one that says no fails the rollout', () => {
  const { progress } = step(start, [wellIn('eu')])
  const silent = step(progress, [wellIn('eu')], 1000, { check: { is: 'Silent', message: 'no answer' } })
  assert.equal([silent.verdict.is, silent.progress.soakedMs], ['CheckUnanswered', progress.soakedMs])
  assert.is(step(progress, [wellIn('eu')], 1000, { check: { is: 'Ill', message: 'errors' } }).verdict.is, 'Failed')
})

test('of few machines, any failure halts', () => {
  assert.is(step(start, [report('eu', { failed: 1 })]).verdict.is, 'Failed')
})

test('of many machines, as many may fail as the threshold says', () => {
  const many = (failed: number) => [report('eu', { desired: 1000, updated: 500, healthy: 480, failed })]
  assert.is.not(step(start, many(20)).verdict.is, 'Failed')
  assert.is(step(start, many(21)).verdict.is, 'Failed')
})

test('those that may fail, and did, hold up nobody', () => {
  const all: Progress = { ...start, waveIndex: 1 }
  const done = (healthy: number, failed: number) => report('eu', { desired: 1000, updated: 980, healthy, failed })
  assert.is(step(all, [done(980, 20)]).verdict.is, 'Soaking')
  assert.is(step(all, [done(979, 20)]).verdict.is, 'Progressing')
})

test('a wave of which nobody can be reached shows nothing and stands, until somebody runs it well', () => {
  const dark = { healthy: 0, unreachable: 4 }
  const first = step(start, [report('eu', dark), report('us')], 60_000)
  assert.equal([first.verdict.is, first.progress.waveIndex, first.progress.soakedMs], ['MachinesSilent', 0, undefined])
  const soaking = step(start, [wellIn('eu'), report('us')])
  assert.is(soaking.verdict.is, 'Soaking')
  const fellSilent = step(soaking.progress, [report('eu', { ...dark, updated: 1 }), report('us')], 60_000)
  assert.equal([fellSilent.verdict.is, fellSilent.progress.waveIndex], ['MachinesSilent', 0])
  const last = { ...start, waveIndex: 2 }
  assert.is(step(last, [report('eu', { updated: 4, healthy: 4 }), report('us', dark)]).verdict.is, 'Complete')
  assert.is(step(last, [report('eu', { desired: 0 }), report('us', { desired: 0 })]).verdict.is, 'Complete')
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
  assert.is(step(late.progress, [report('eu', { fetched: 1 })]).verdict.is, 'Progressing')
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
      for (const views of steps) {
        const regions = views.map((view, at) => ({
          region: ['eu', 'us', 'ap'][at] ?? '',
          halted: false,
          manySilent: false,
          ...view,
        }))
        const { progress: next, verdict } = step(progress, regions)
        assert.ok(next.waveIndex === progress.waveIndex || next.waveIndex === progress.waveIndex + 1)
        if (verdict.is === 'Failed') assert.equal(next, progress)
        progress = next
      }
    }),
  )
})

test('without waves one machine goes first, then one region after the other', () => {
  const made = wavesOf({}, ['eu', 'us'])
  const changes = planOf(made, [
    { name: 'eu', desired: 4 },
    { name: 'us', desired: 3 },
  ]).map((step) => [step.wave, step.region, step.changes])
  assert.equal(changes, [
    [1, 'eu', 1],
    [2, 'eu', 3],
    [3, 'us', 3],
  ])
  assert.equal(wavesOf({ waves }, ['eu', 'us']), waves)
})

test.run()
