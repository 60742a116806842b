import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { type Hub, type RolloutWorld, rolloutOf, simulateRollout } from './rolloutSimulation.ts'
import { random } from './xorshift.ts'

const test = suite('rollouts in simulated time')

const first = Number(process.env.SHOAL_CHAOS_SEED ?? Math.floor(Math.random() * 2 ** 31))
const runs = Number(process.env.SHOAL_CHAOS_RUNS ?? 300)
console.log(`  SHOAL_CHAOS_SEED=${first}`)

/** Someone deploys it. */
const wants = (template: string) => (hub: Hub) => {
  hub.wanted = template
}

function worldOf(seed: number): RolloutWorld {
  const next = random(seed + 1)
  const pick = <T>(from: T[]): T => from[Math.floor(next() * from.length)] as T
  const waves = pick([
    [{ regions: ['*'], percent: 100 }],
    [
      { regions: ['r0'], machines: 1, soak: '30s' },
      { regions: ['r0'], percent: 100, soak: '1m' },
      { regions: ['*'], percent: 50, soak: '30s' },
      { regions: ['*'], percent: 100 },
    ],
    [
      { regions: ['*'], percent: 10, soak: '20s' },
      { regions: ['*'], percent: 100 },
    ],
  ])
  const bad = new Set(['b', 'c', 'd'].filter(() => next() < 0.4))
  const machines = pick([1, 3, 12])
  // Where a region has few, nobody might be left to show that anything works.
  const deadly = new Set(['b', 'c', 'd'].filter(() => next() < 0.2 && machines === 12))
  const minutes = (from: number, to: number) => Math.round((from + next() * (to - from)) * 60_000)
  const wishes = [
    { atMs: minutes(8, 12), do: wants('b') },
    { atMs: minutes(12, 16), do: wants('c') },
    { atMs: minutes(16, 22), do: wants('d') },
    {
      atMs: minutes(22, 24),
      do: (hub) => {
        if (hub.effective && next() < 0.5) hub.paused.add(hub.effective.revision)
      },
    },
    { atMs: minutes(24, 26), do: (hub) => hub.paused.clear() },
    {
      atMs: minutes(26, 30),
      do: (hub) => {
        if (hub.effective && next() < 0.5) hub.holds.set(hub.effective.template, { by: 'ada' })
      },
    },
  ] satisfies RolloutWorld['wishes']
  return {
    ...{ seed, regions: 3, machines, bad, deadly, wishes, faultsMs: minutes(30, 40) },
    rollout: rolloutOf({ waves, maxUnavailable: pick<number | string>([1, '33%', '100%']) }),
  }
}

test('whatever dies, is cut off, lost, late or said twice: budgets hold, waves wait, and all comes right', () => {
  let slowestMs = 0
  for (let run = 0; run < runs; run++)
    try {
      slowestMs = Math.max(slowestMs, simulateRollout(worldOf(first + run)).settledMs)
    } catch (error) {
      throw new Error(`seed ${first + run}: ${(error as Error).message}`, { cause: error })
    }
  console.log(`  ${runs} runs; the slowest was right ${slowestMs / 1000} s after the last fault`)
  assert.ok(slowestMs > 0)
})

test('the same seed gives the same run', () => {
  const of = () => {
    const { settledMs, hub } = simulateRollout(worldOf(first))
    return [settledMs, JSON.stringify(hub.status)]
  }
  assert.equal(of(), of())
})

test.run()
