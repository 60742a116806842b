/** What other systems got wrong, each as a case of ours. */
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { RegionalGoalState } from '../../api/regionalGoalState.ts'
import { reportsOf } from '../../controllers/goalState/status.ts'
import { advance } from '../../rollout/engine.ts'
import type { Region } from './rolloutRegion.ts'
import { type Hub, type RolloutWorld, rolloutOf, simulateRollout } from './rolloutSimulation.ts'

const test = suite('known bugs of others')

const minute = 60_000
const everywhere = [{ regions: ['*'], percent: 100 }]
const wants = (template: string) => (hub: Hub) => {
  hub.wanted = template
}
const running = (regions: Region[], template: string) =>
  regions.flatMap(({ machines }) => machines).filter((machine) => machine.running === template).length

/** Template a everywhere, then b from the fifth minute on; nothing goes wrong but what the case does. */
const world = (more: Partial<RolloutWorld> & { waves?: object[]; maxUnavailable?: number | string }): RolloutWorld => {
  const { waves = everywhere, maxUnavailable = '33%', ...rest } = more
  return {
    ...{ seed: 1, regions: 2, machines: 10, bad: new Set<string>(), faultsMs: 0 },
    rollout: rolloutOf({ waves, maxUnavailable }),
    wishes: [{ atMs: 5 * minute, do: wants('b') }],
    ...rest,
  }
}

/** Those machines of each region are off from then on, for good. */
const dead = (regions: Region[], count: number) => {
  for (const { machines } of regions)
    for (const machine of machines.slice(0, count)) machine.downUntilMs = Number.POSITIVE_INFINITY
}

/** Until b runs on all that live; the simulated minute. */
const untilMoved = (of: RolloutWorld, alive: number): number =>
  untilSeen(of, (hub, regions) => running(regions, 'b') === alive && hub.status.lastGood?.template === 'b')

/** The simulated minute in which it is first so. */
function untilSeen(of: RolloutWorld, isSo: (hub: Hub, regions: Region[]) => boolean): number {
  let movedMs = 0
  const enough = new Error('enough')
  try {
    simulateRollout({
      ...of,
      onTick: (nowMs, hub, regions) => {
        of.onTick?.(nowMs, hub, regions)
        if (isSo(hub, regions)) {
          movedMs = nowMs
          throw enough
        }
      },
    })
  } catch (error) {
    if (error !== enough) throw error
  }
  return movedMs / minute
}

test('machines that are dead before a wave hold up nobody (kubernetes #63465, #117658: they ate the budget)', () => {
  // a tenth may be down, three tenths are, and have been for a while
  const moved = untilMoved(
    world({
      maxUnavailable: '10%',
      wishes: [{ atMs: 20 * minute, do: wants('b') }],
      onTick: (nowMs, _hub, regions) => {
        if (nowMs === 4 * minute) dead(regions, 3)
      },
    }),
    14,
  )
  assert.ok(moved < 26, `${moved} minutes`)
})

test('machines that went ill for reasons of their own are not all updated at once (kubernetes #111073)', () => {
  let most = 0
  simulateRollout(
    world({
      waves: [{ regions: ['*'], percent: 20, soak: '3m' }, ...everywhere],
      onTick: (nowMs, hub, regions) => {
        // the application is down everywhere
        if (nowMs === 5 * minute)
          for (const { machines } of regions) for (const machine of machines) machine.running = undefined
        if (hub.effective?.template === 'b' && hub.status.waveIndex === 0) most = Math.max(most, running(regions, 'b'))
      },
    }),
  )
  assert.is(most, 4)
})

test('what never becomes healthy is gone back from by itself (StatefulSet waits for it for ever)', () => {
  const { hub, regions } = simulateRollout(world({ bad: new Set(['b']) }))
  assert.is(running(regions, 'a'), 20)
  assert.equal([hub.status.rollback, hub.holds.has('b')], [true, true])
})

test('a release that kills machines for good is gone back from by the others (the dead eat no budget of a rollback)', () => {
  let killed = 0
  const moved = untilSeen(
    world({
      maxUnavailable: 1,
      onTick: (_nowMs, _hub, regions) => {
        for (const { machines } of regions) {
          if (machines.filter((machine) => machine.running === 'b').length < 3) continue
          const struck = machines.find(({ activating, row }) => activating && row.report?.state === 'Activating')
          if (struck?.activating?.template !== 'b') continue
          struck.activating.lostPower = true
          struck.downUntilMs = Number.POSITIVE_INFINITY
          killed++
        }
      },
    }),
    (hub, regions) => hub.status.rollback === true && running(regions, 'b') === 0,
  )
  assert.ok(killed > 0)
  assert.ok(moved < 20, `${moved} minutes`)
})

test('machines that die after they were updated hold up no wave, as long as so many may fail', () => {
  let struck: Region['machines'][number] | undefined
  const moved = untilMoved(
    world({
      machines: 200,
      waves: [{ regions: ['r0'], percent: 50 }, ...everywhere],
      onTick: (_nowMs, _hub, [first]) => {
        const updated = first?.machines.filter((machine) => machine.running === 'b') ?? []
        if (updated.length < 60 || struck) return
        struck = updated[0]
        if (struck) struck.downUntilMs = Number.POSITIVE_INFINITY
      },
    }),
    400,
  )
  assert.ok(moved < 12, `${moved} minutes`)
})

test('no more are down than may be, however often it is decided anew (nomad #27284)', () => {
  // a hub that conflicts and dies all the time; the simulation watches the budget
  const { hub, regions } = simulateRollout(world({ maxUnavailable: 1, seed: 7, faultsMs: 20 * minute }))
  assert.is(running(regions, hub.effective?.template ?? ''), 20)
})

test('a rollout past machines that never answer is complete, and says so (nomad #27497)', () => {
  const moved = untilMoved(
    world({
      onTick: (nowMs, _hub, regions) => {
        if (nowMs === 4 * minute) dead(regions, 1)
      },
    }),
    18,
  )
  assert.ok(moved < 12, `${moved} minutes`)
})

test('regions of an earlier version, which report less, complete waves too (nomad #27605)', () => {
  const { metadata, spec } = RegionalGoalState.make(
    { name: 'demo.web', namespace: 'shoal-region-eu' },
    {
      ...{ envelope: 'x', region: 'eu', goal: { namespace: 'demo', name: 'web', uid: 'u' }, artifact: 'a' },
      ...{ revision: 1, sequence: 1, target: '100%', halted: false },
    },
  )
  const status = { observedRevision: 1, observedSequence: 1, desired: 4, fetched: 4, updated: 4, healthy: 4 }
  const reports = reportsOf(1, ['eu'], [RegionalGoalState.parse({ ...RegionalGoalState.make(metadata, spec), status })])
  const progress = { waveIndex: 0, open: true, soakedMs: undefined, waitedMs: 0, reached: 0 }
  assert.is(advance(rolloutOf({ waves: everywhere }), progress, { reports, elapsedMs: 1000 }).verdict.is, 'Complete')
})

test('the next wave waits for what this one is told now, not for what was well before (argo-cd #22558)', () => {
  const waves = [
    { regions: ['r0'], percent: 100 },
    { regions: ['r1'], percent: 100 },
  ]
  simulateRollout(
    world({
      waves,
      faultsMs: 10 * minute,
      seed: 3,
      onTick: (_nowMs, hub, regions) => {
        const order = hub.told.get('r1')
        if (order?.template !== 'b' || order.target.percent !== 100 || hub.status.rollback) return
        const [first] = regions
        const lacks =
          first?.machines.filter((machine) => machine.running !== 'b' && machine.downUntilMs === 0).length ?? 0
        assert.is(lacks, 0, 'the second wave is told to begin, and machines of the first run the old one')
      },
    }),
  )
})

test('a fix supersedes a rollout that is stuck (argo-cd #17314)', () => {
  const { hub, regions } = simulateRollout(
    world({
      bad: new Set(['b']),
      rollout: rolloutOf({ waves: everywhere, onFailure: 'Pause', failureThreshold: '100%' }),
      wishes: [
        { atMs: 5 * minute, do: wants('b') },
        { atMs: 8 * minute, do: wants('c') },
      ],
    }),
  )
  assert.is(running(regions, 'c'), 20)
  assert.is(hub.status.lastGood?.template, 'c')
})

test('fifty regions come to their end as two do (fleet #4283)', () => {
  const { regions } = simulateRollout(world({ regions: 50, machines: 20 }))
  assert.is(running(regions, 'b'), 1000)
})

test('what is bad reaches every region’s disk, and runs on one machine (Google, 2025-06-12: everywhere within seconds)', () => {
  const began = new Set<string>()
  simulateRollout(
    world({
      regions: 5,
      bad: new Set(['b']),
      waves: [{ regions: ['r0'], machines: 1, soak: '2m' }, ...everywhere],
      onTick: (_nowMs, _hub, regions) => {
        for (const { name, machines } of regions)
          for (const [at, { activating }] of machines.entries())
            if (activating?.template === 'b') began.add(`${name}/${at}`)
      },
    }),
  )
  assert.is(began.size, 1)
})

test.run()
