import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { random, simulateDay } from '../hack/bench/queue/day.ts'
import { type Need, neededWorkers, type QueueLoad, type ScalePolicy, wantedWorkers } from './autoscale.ts'

const test = suite('autoscale')
const minute = 60_000

const policy: ScalePolicy = {
  classes: [
    { name: 'standard', min: 2, max: 100 },
    { name: 'large', min: 1, max: 20, hours: { from: 20, to: 6 } },
  ],
  targetWaitMs: 30_000,
  startMs: 45_000,
  coolDownMs: 3 * minute,
}
const load = (more: Partial<QueueLoad> = {}): QueueLoad => ({
  ...{ nowMs: 0, hour: 12, ready: 0, arrivalsPerMs: 0, buildMs: 14 * minute, busy: {} },
  ...more,
})
const wanted = (more: Partial<QueueLoad> = {}, recent: Need[] = []) => wantedWorkers(policy, load(more), recent).workers

test('an empty queue keeps the least there may be, of the classes whose hours are now', () => {
  assert.equal(wanted(), { standard: 2, large: 0 })
  assert.equal(wanted({ hour: 23 }), { standard: 2, large: 1 })
  assert.equal(wanted({ hour: 5 }), { standard: 2, large: 1 })
  assert.equal(wanted({ hour: 6 }), { standard: 2, large: 0 })
})

test('where builds are long each waiting job gets a worker; where they are short one worker serves many', () => {
  assert.is(wanted({ ready: 40 }).standard, 40)
  assert.is(wanted({ ready: 40, busy: { standard: 10 } }).standard, 50)
  assert.is(wanted({ ready: 40, buildMs: 3000 }).standard, 4)
  assert.is(wanted({ ready: 40, buildMs: 3000, busy: { standard: 4 } }).standard, 4)
})

test('in their hours the larger ones are filled first, and the others take what is left', () => {
  assert.equal(wanted({ hour: 22, ready: 50 }), { standard: 30, large: 20 })
  assert.equal(wanted({ hour: 7, ready: 50, busy: { large: 8 } }), { standard: 50, large: 8 })
})

test('what was needed within the cool-down is kept, then let go', () => {
  const peak = wantedWorkers(policy, load({ ready: 40 }), [])
  const soon = wantedWorkers(policy, load({ nowMs: 2 * minute }), peak.recent)
  assert.is(soon.workers.standard, 40)
  assert.is(wantedWorkers(policy, load({ nowMs: 3 * minute }), soon.recent).workers.standard, 2)
})

test('whatever the load: within bounds, nobody busy is let go, more work never wants fewer, memory stays small', () => {
  for (let seed = 1; seed <= 20; seed++) {
    const next = random(seed)
    const upTo = (most: number) => Math.floor(next() * (most + 1))
    let recent: Need[] = []
    for (let nowMs = 0; nowMs < 3_600_000; nowMs += 1 + upTo(60_000)) {
      const of = load({
        nowMs,
        hour: upTo(23),
        ready: upTo(next() < 0.2 ? 40_000 : 50),
        arrivalsPerMs: next() < 0.2 ? 0 : next() / 1000,
        buildMs: next() < 0.1 ? 0 : upTo(3_600_000),
        // More than the largest allowed: somebody lowered it meanwhile.
        busy: { standard: upTo(120), large: upTo(25) },
      })
      const why = `seed ${seed}: ${JSON.stringify(of)}`
      const wish = wantedWorkers(policy, of, recent)
      for (const { name, min, max, hours } of policy.classes) {
        const workers = wish.workers[name] ?? Number.NaN
        const busy = of.busy[name] ?? 0
        assert.ok(Number.isSafeInteger(workers) && workers >= busy, why)
        assert.ok(workers <= Math.max(max, busy), why)
        if (!hours) assert.ok(workers >= min, why)
      }
      const total = (given: QueueLoad) =>
        Object.values(wantedWorkers(policy, given, recent).workers).reduce((sum, workers) => sum + workers, 0)
      assert.ok(total({ ...of, ready: of.ready + 1 + upTo(100) }) >= total(of), why)
      assert.ok(total({ ...of, arrivalsPerMs: of.arrivalsPerMs * 2 }) >= total(of), why)
      assert.ok(neededWorkers(policy, of) >= (of.busy.standard ?? 0) + (of.busy.large ?? 0), why)
      recent = wish.recent
      // Each lower than the one before it, none older than the cool-down.
      for (const [i, need] of recent.entries()) {
        assert.ok(nowMs - need.atMs < policy.coolDownMs, why)
        assert.ok(i === 0 || need.workers < (recent[i - 1]?.workers ?? 0), why)
      }
    }
  }
})

test('a day of 5,000 builds with two peaks starts them in time, on few more hours than they take', () => {
  for (const seed of [1, 2, 3, 4, 5]) {
    const fleet = { ...policy, classes: [{ name: 'standard', min: 2, max: 1000 }] }
    const day = simulateDay({ seed, builds: 5000, meanBuildMs: 14.4 * minute, fleet })
    assert.is(day.builds, 5000)
    assert.ok(day.p95WaitMs < minute, `seed ${seed}: ${day.p95WaitMs} ms`)
    assert.ok(day.workerHours <= 1.25 * day.buildHours, `seed ${seed}: ${day.workerHours} of ${day.buildHours} h`)
  }
})

test.run()
