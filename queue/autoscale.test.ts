import fc from 'fast-check'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { simulateDay } from '../hack/bench/queue/day.ts'
import { type Need, neededWorkers, type QueueLoad, type ScalePolicy, wantedWorkers } from './autoscale.ts'

const test = suite('autoscale')
const minute = 60_000

/** The larger ones come second: in their hours they are filled first. */
const policyWith = (on: boolean): ScalePolicy => ({
  classes: [
    { name: 'standard', min: 2, max: 100, on: true },
    { name: 'large', min: 1, max: 20, on },
  ],
  targetWaitMs: 30_000,
  startMs: 45_000,
  coolDownMs: 3 * minute,
})
const policy = policyWith(false)
const inTheirHours = policyWith(true)
const load = (more: Partial<QueueLoad> = {}): QueueLoad => ({
  ...{ nowMs: 0, ready: 0, arrivalsPerMs: 0, buildMs: 14 * minute, busy: {} },
  ...more,
})
const wanted = (more: Partial<QueueLoad> = {}, by = policy) => wantedWorkers(by, load(more), []).workers

test('an empty queue keeps the least there may be, of the classes whose hours are now', () => {
  assert.equal(wanted(), { standard: 2, large: 0 })
  assert.equal(wanted({}, inTheirHours), { standard: 2, large: 1 })
})

test('where builds are long each waiting job gets a worker; where they are short one worker serves many', () => {
  assert.is(wanted({ ready: 40 }).standard, 40)
  assert.is(wanted({ ready: 40, busy: { standard: 10 } }).standard, 50)
  assert.is(wanted({ ready: 40, buildMs: 3000 }).standard, 4)
  assert.is(wanted({ ready: 40, buildMs: 3000, busy: { standard: 4 } }).standard, 4)
})

test('in their hours the larger ones are filled first, and the others take what is left', () => {
  assert.equal(wanted({ ready: 50 }, inTheirHours), { standard: 30, large: 20 })
  assert.equal(wanted({ ready: 50, busy: { large: 8 } }), { standard: 50, large: 8 })
})

test('what was needed within the cool-down is kept, then let go', () => {
  const peak = wantedWorkers(policy, load({ ready: 40 }), [])
  const soon = wantedWorkers(policy, load({ nowMs: 2 * minute }), peak.recent)
  assert.is(soon.workers.standard, 40)
  assert.is(wantedWorkers(policy, load({ nowMs: 3 * minute }), soon.recent).workers.standard, 2)
})

/** Any number of classes, in any bounds, of which some are on. */
const anyPolicy = fc.record({
  classes: fc.uniqueArray(
    fc.record({
      name: fc.constantFrom('small', 'standard', 'large', 'huge'),
      bounds: fc.tuple(fc.nat(1000), fc.nat(1000)),
      on: fc.boolean(),
    }),
    { selector: ({ name }) => name, minLength: 1 },
  ),
  targetWaitMs: fc.integer({ min: 1, max: 600_000 }),
  startMs: fc.integer({ min: 0, max: 600_000 }),
  coolDownMs: fc.integer({ min: 1, max: 600_000 }),
})
/** Also more busy ones than the largest allowed: somebody lowered it meanwhile. */
const anyLook = fc.record({
  afterMs: fc.nat(700_000),
  ready: fc.oneof(fc.nat(50), fc.nat(40_000)),
  arrivalsPerMs: fc.double({ min: 0, max: 1, noNaN: true }),
  buildMs: fc.oneof(fc.constant(0), fc.nat(10_000), fc.nat(3_600_000)),
  busy: fc.dictionary(fc.constantFrom('small', 'standard', 'large', 'huge'), fc.nat(1500), { noNullPrototype: true }),
  more: fc.integer({ min: 1, max: 1000 }),
})

test('whatever the load: within bounds, nobody busy is let go, more work never wants fewer, memory stays small', () => {
  const property = fc.property(anyPolicy, fc.array(anyLook, { minLength: 1, maxLength: 30 }), (drawn, looks) => {
    const classes = drawn.classes.map(({ name, bounds, on }) => {
      return { name, min: Math.min(...bounds), max: Math.max(...bounds), on }
    })
    const any = { ...drawn, classes }
    let recent: Need[] = []
    let nowMs = 0
    for (const { afterMs, more, ...look } of looks) {
      nowMs += afterMs
      const of = { nowMs, ...look }
      const wish = wantedWorkers(any, of, recent)
      assert.equal(Object.keys(wish.workers).sort(), classes.map(({ name }) => name).sort())
      for (const { name, min, max, on } of classes) {
        const workers = wish.workers[name] ?? Number.NaN
        const busy = of.busy[name] ?? 0
        assert.ok(Number.isSafeInteger(workers) && workers >= busy, 'nobody busy is let go')
        assert.ok(workers <= Math.max(on ? max : 0, busy), 'at most as many as may be')
        if (on) assert.ok(workers >= min, 'at least as many as must be')
      }
      const total = (given: QueueLoad) =>
        Object.values(wantedWorkers(any, given, recent).workers).reduce((sum, workers) => sum + workers, 0)
      const needed = Math.max(...wish.recent.map(({ workers }) => workers))
      const room = classes.reduce((sum, { name, max, on }) => sum + Math.max(on ? max : 0, of.busy[name] ?? 0), 0)
      assert.ok(total(of) >= Math.min(needed, room), 'all that are needed, as far as there is room')
      assert.ok(total({ ...of, ready: of.ready + more }) >= total(of), 'more that wait')
      assert.ok(total({ ...of, arrivalsPerMs: of.arrivalsPerMs * 2 }) >= total(of), 'more that come')
      const busy = Object.values(of.busy).reduce((sum, workers) => sum + workers, 0)
      assert.ok(neededWorkers(any, of) >= busy)
      assert.ok(total(of) >= total({ ...of, ready: 0, arrivalsPerMs: 0 }), 'what waits is not lost')
      recent = wish.recent
      // Each lower than the one before it, none older than the cool-down.
      for (const [i, need] of recent.entries()) {
        assert.ok(nowMs - need.atMs < any.coolDownMs)
        assert.ok(i === 0 || need.workers < (recent[i - 1]?.workers ?? 0))
      }
    }
  })
  fc.assert(property, { numRuns: 500 })
})

test('a day of 5,000 builds with two peaks starts them in time, on few more hours than they take', () => {
  for (const seed of [1, 2, 3, 4, 5]) {
    const fleet = { ...policy, classes: [{ name: 'standard', min: 2, max: 1000, on: true }] }
    const day = simulateDay({ seed, builds: 5000, meanBuildMs: 14.4 * minute, fleet })
    assert.is(day.builds, 5000)
    assert.ok(day.p95WaitMs < minute, `seed ${seed}: ${day.p95WaitMs} ms`)
    assert.ok(day.workerHours <= 1.25 * day.buildHours, `seed ${seed}: ${day.workerHours} of ${day.buildHours} h`)
  }
})

test.run()
