/**
 * Rollouts: grants to 20,000 machines in a real database, the engine for 100 goals, and 100,000 machines of five regions in
 * simulated time, by the real engine and the real rule of grants. Exits 1 when a target is missed.
 */
import { join } from 'node:path'
import { Command } from 'commander'
import type { MachineCounts } from '../../../api/goalState.ts'
import { countMachines } from '../../../fleet/counts.ts'
import { Granter, grantActivations, type TrustedGoal } from '../../../fleet/grant.ts'
import { advance, enterWave } from '../../../rollout/engine.ts'
import { Database } from '../../../runtime/sql.ts'
import { rolloutOf, simulateRollout } from '../../../test/simulation/rolloutSimulation.ts'
import { startDatabase } from '../../parts/database.ts'
import { availability } from './availability.ts'
import { polls } from './polls.ts'
import { propagation } from './propagation.ts'
import { anyMissed, row, seconds, timed } from './rows.ts'

const { quick, minutes } = new Command('run')
  .description(
    'Measures grants, the engine, rollouts in simulated time, polls, propagation, and what is available under kills.',
  )
  .option('--quick', 'under a minute: 2,000 machines in the database, 10,000 simulated, 200 that poll')
  .option('--minutes <n>', 'of kills', Number, 20)
  .parse()
  .opts<{ quick?: boolean; minutes: number }>()

async function grants(machines: number): Promise<void> {
  await using server = await startDatabase({ own: true })
  await using database = new Database(await server.createSchema('fleet'), { connectionLimit: 8 })
  await database.migrate(join(import.meta.dirname, '../../../fleet/migrations'))
  const [templateHash, old] = ['a'.repeat(16), 'b'.repeat(16)]
  await database.execute(
    "INSERT INTO goal (namespace, name, sequence, revision, template, envelope) VALUES ('demo', 'web', 1, 1, ?, '')",
    [templateHash],
  )
  const nowMs = Date.now()
  const names = Array.from({ length: machines }, (_, at) => `m${at}`)
  for (let at = 0; at < machines; at += 1000) {
    const some = names.slice(at, at + 1000)
    await database.execute('INSERT INTO machine (name, labels, namespaces, last_seen_ms) VALUES ?', [
      some.map((name) => [name, '{}', '[]', nowMs]),
    ])
    await database.execute(
      'INSERT INTO machine_goal (namespace, name, machine, state, template, revision, running) VALUES ?',
      [some.map((name) => ['demo', 'web', name, 'Fetched', templateHash, 1, old])],
    )
  }
  const goal = {
    ...{ namespace: 'demo', name: 'web', sequence: 1, revision: 1, templateHash, halted: false, rollback: false },
    ...{ trusted: false, maxUnavailable: '33%', failureThreshold: '2%', target: { machines: 0, percent: 100 } },
    template: { activation: { deadline: '60s', stop: { timeout: '30s' } } },
  } as TrustedGoal
  const listening = { silentMs: 60_000, upMs: undefined }
  const options = { beginWithinMs: 60_000, listening }
  const count = async (what: string) => {
    const countMs = await timed(async () => void (await countMachines(database, goal, listening)))
    row(`counting ${machines} machines of a goal, ${what}`, `${countMs.toFixed(0)} ms`, countMs <= 20, '≤ 20 ms')
  }
  await countMachines(database, goal, listening)
  await count('none of them granted')
  const single = 20
  const singlyMs = await timed(async () => {
    for (const name of names.slice(0, single)) await grantActivations(database, goal, [name], options)
  })
  const granter = new Granter(database)
  let given = 0
  const tookMs = await timed(async () => {
    const answers = await Promise.all(names.map((name) => granter.ask(goal, name, () => options)))
    given = answers.filter((answer) => answer !== undefined).length
  })
  const alone = (singlyMs / single) * machines
  row(
    `${machines} machines of a region ask at once`,
    `answered in ${seconds(tookMs)}, ${given} granted; one by one ${seconds(alone)}`,
    given === Math.ceil(0.33 * machines) && tookMs < 10_000,
    'within a poll, 10 s; as many as the budget',
  )
  await count('a third of them granted')
}

function engine(): void {
  const rollout = rolloutOf({
    waves: [
      { regions: ['*'], percent: 50, soak: '1m' },
      { regions: ['*'], percent: 100 },
    ],
  })
  const counts: MachineCounts = {
    ...{ desired: 20_000, fetched: 20_000, updated: 9000, healthy: 9000, failed: 0, unreachable: 0 },
  }
  const reports = ['a', 'b', 'c', 'd', 'e'].map((region) => ({
    region,
    counts,
    fresh: true,
    halted: false,
    manySilent: false,
  }))
  const beganMs = performance.now()
  for (let goal = 0; goal < 100; goal++) {
    const progress = enterWave(rollout, { waveIndex: 0, open: false, soakedMs: undefined, waitedMs: 0, reached: 0 })
    advance(rollout, progress, { reports, elapsedMs: 1000 })
  }
  const tookMs = performance.now() - beganMs
  row('a step of the engine for 100 goals in 5 regions', `${tookMs.toFixed(1)} ms`, tookMs <= 100, '≤ 100 ms')
}

/** 10 GB at 1 Gbit/s, and what stopping, starting and minHealthy take. */
const fetchMs = 86_000
const activateMs = 15_000
const pollMs = 10_000

function crowd(machines: number): { healthyMs: number; tookMs: number; megabytes: number } {
  const beganMs = performance.now()
  const waves = [
    { regions: ['r0'], machines: 1 },
    { regions: ['r0'], percent: 100 },
    { regions: ['*'], percent: 100 },
  ]
  const { settledMs } = simulateRollout({
    ...{ seed: 1, regions: 5, machines: machines / 5, bad: new Set<string>(), wishes: [], faultsMs: 0 },
    ...{ rollout: rolloutOf({ waves }), fetchMs, activateMs },
  })
  return {
    healthyMs: settledMs,
    tookMs: performance.now() - beganMs,
    megabytes: process.memoryUsage().rss / 1e6,
  }
}

function rollback(machines: number): void {
  let decidedMs = 0
  let saidMs = 0
  const { settledMs } = simulateRollout({
    ...{ seed: 1, regions: 5, machines: machines / 5, bad: new Set<string>(), faultsMs: 0, fetchMs, activateMs },
    rollout: rolloutOf({ waves: [{ regions: ['*'], percent: 100 }] }),
    wishes: [
      {
        atMs: 400_000,
        do: (hub) => {
          hub.wanted = 'b'
        },
      },
      {
        atMs: 700_000,
        do: (hub) => {
          hub.holds.set('b', { by: 'ada' })
          saidMs = 700_000
        },
      },
    ],
  })
  decidedMs = settledMs - saidMs
  const mostMs = 4 * (1.5 * activateMs) + 2 * pollMs
  row(
    `going back with ${machines} machines, from the word to the last healthy one`,
    seconds(decidedMs),
    decidedMs <= mostMs,
    `≤ 4 activations + 2 polls, ${seconds(mostMs)}`,
  )
}

await grants(quick ? 2000 : 20_000)
engine()
for (const machines of quick ? [1000, 10_000] : [1000, 10_000, 100_000]) {
  const { healthyMs, tookMs, megabytes } = crowd(machines)
  row(
    `${machines} machines in 5 regions, 10 GB, deploy to the last one healthy`,
    `${seconds(healthyMs)} simulated, in ${seconds(tookMs)} and ${Math.round(megabytes)} MB`,
    healthyMs <= 360_000,
    '≤ 360 s, no soak',
  )
}
rollback(quick ? 10_000 : 100_000)
// A process may have 20,000 files open where nobody raised that.
await polls(quick ? [200, 2000] : [200, 2000, 19_500], { quick })
for (const machines of quick ? [200] : [200, 2000]) await propagation({ machines, rounds: machines === 2000 ? 60 : 10 })
if (!quick) await availability(minutes)
process.exit(anyMissed() ? 1 : 0)
