import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { startDatabase } from '../hack/parts/database.ts'
import { judgeSilence, latelyMs } from '../rollout/silence.ts'
import { Database, type Sql } from '../runtime/sql.ts'
import { random } from '../test/simulation/xorshift.ts'
import { type Counted, countMachines, type GoalAt, type Listening, reportSlackMs } from './counts.ts'
import { nowMs } from './machines.ts'

const test = suite('counts')
const parts = new AsyncDisposableStack()
const server = parts.use(await startDatabase())
const database = parts.use(new Database(await server.createSchema('fleet')))
await database.migrate(join(import.meta.dirname, 'migrations'))

const isOpen = (grant: 'g' | 'other') =>
  `IF(${grant}.begun, ${grant}.ends_at_ms, ${grant}.begin_by_ms + ${reportSlackMs}) > ${nowMs}`
const another = (what: string) => `EXISTS (SELECT 1 FROM activation_grant other WHERE other.namespace = mg.namespace
  AND other.name = mg.name AND other.machine = mg.machine AND ${what})`

/** Everything there is to know of each machine, by one look. */
async function lookAtAll(
  sql: Sql,
  { namespace, name, revision, templateHash }: GoalAt,
  { silentMs, upMs = 1e12 }: Listening,
) {
  const rows = await sql.query<Record<string, number | null>>(
    `SELECT mg.running <=> ? AS runs, mg.template = ? AND mg.state NOT IN ('Waiting', 'Fetching') AS fetched,
       mg.template = ? AND mg.state = 'Healthy' AS saysHealthy, mg.revision = ? AS current,
       mg.state IN ('Failed', 'RolledBack') AND mg.template = ? AND mg.revision = ? AS saysFailed,
       mg.state IN ('Activating', 'Failed') AS down, m.last_seen_ms <= ${nowMs} - ? AS silent,
       m.last_seen_ms > ${nowMs} - ? AS lately,
       g.id IS NOT NULL AND ${isOpen('g')} AS open,
       g.id IS NOT NULL AND NOT ${isOpen('g')} AND (g.begun OR m.last_seen_ms < g.begin_by_ms) AS unresolved,
       ${another(isOpen('other'))} AS anyOpen,
       ${another(`NOT ${isOpen('other')} AND (other.begun OR m.last_seen_ms < other.begin_by_ms)`)} AS anyUnresolved,
       ${another(`other.template = ? AND (${isOpen('other')} OR other.begun OR m.last_seen_ms < other.begin_by_ms)`)} AS mayRun,
       m.last_seen_ms <= ${nowMs} - ? AS unheard
     FROM machine_goal mg JOIN machine m ON m.name = mg.machine
       LEFT JOIN activation_grant g ON g.namespace = mg.namespace AND g.name = mg.name AND g.machine = mg.machine
         AND g.revision = ?
     WHERE mg.namespace = ? AND mg.name = ?`,
    [
      ...[templateHash, templateHash, templateHash, revision, templateHash, revision],
      ...[silentMs, silentMs + latelyMs, templateHash, upMs, revision, namespace, name],
    ],
  )
  return rows.map((row) => (column: string) => Boolean(row[column]))
}

async function countInOneLook(sql: Sql, goal: GoalAt, listening: Listening): Promise<Counted> {
  const machines = await lookAtAll(sql, goal, listening)
  const count = (which: (is: (column: string) => boolean) => boolean) => machines.filter(which).length
  const changed = (is: (column: string) => boolean) => is('runs') && is('current')
  const lost = (is: (column: string) => boolean) =>
    is('silent') && is('unresolved') && !changed(is) && !is('saysFailed')
  const waitedFor = (is: (column: string) => boolean) => is('silent') && is('open') && !changed(is) && !is('saysFailed')
  const heard = {
    changed: {
      machines: count((is) => is('runs')) + count(lost),
      silent: count((is) => is('silent') && ((changed(is) && !is('saysFailed')) || lost(is))),
    },
    unchanged: {
      machines: machines.length - count((is) => is('runs')) - count(lost),
      silent: count((is) => is('silent') && !changed(is) && !lost(is) && !waitedFor(is) && !is('saysFailed')),
    },
    lately: count((is) => is('silent') && is('lately')),
  }
  const judged = judgeSilence(heard)
  const failed = goal.trusted ? 0 : judged.failed
  return {
    desired: machines.length,
    fetched: count((is) => is('runs') || is('fetched')),
    updated: count((is) => is('runs')),
    healthy: count((is) => is('runs') && is('saysHealthy') && !is('silent')),
    failed: count((is) => is('saysFailed')) + failed,
    unreachable: heard.unchanged.silent + heard.changed.silent - failed,
    unavailable:
      count((is) => is('down') || is('anyOpen') || (!goal.trusted && is('anyUnresolved'))) +
      count((is) => is('unheard')),
    updatedOrGranted: count((is) => is('runs') || is('mayRun')) + count((is) => is('unheard') && !is('runs')),
    highestSequence: 0,
    manySilent: judged.many && !goal.trusted,
  }
}

test('what three looks count is what one look at everything counts, whatever the rows say', async () => {
  const seed = Math.floor(Math.random() * 2 ** 31)
  const next = random(seed)
  const pick = <T>(from: T[]): T => from[Math.floor(next() * from.length)] as T
  const [mine, other] = ['a'.repeat(16), 'b'.repeat(16)]
  const now = Date.now()
  // far enough from every bound that the time this takes changes nothing
  const times = [-3_600_000, -300_000, 600_000, 3_600_000].map((ms) => now + ms)
  for (let round = 0; round < 12; round++) {
    const name = `web${round}`
    const names = Array.from({ length: 40 }, (_, at) => `m${round}-${at}`)
    await database.execute('INSERT INTO machine (name, labels, namespaces, last_seen_ms) VALUES ?', [
      names.map((machine) => [machine, '{}', '[]', pick(times)]),
    ])
    await database.execute(
      'INSERT INTO machine_goal (namespace, name, machine, state, template, revision, running) VALUES ?',
      [
        names.map((machine) => [
          ...['demo', name, machine],
          pick(['Waiting', 'Fetching', 'Fetched', 'Activating', 'Healthy', 'Failed', 'RolledBack']),
          ...[pick([mine, other]), pick([1, 2]), pick([mine, other, null])],
        ]),
      ],
    )
    const grants = names.flatMap((machine, at) =>
      [1, 2]
        .filter(() => next() < 0.6)
        .map((revision) => [
          `${round}-${at}-${revision}`.padStart(32, '0'),
          ...['demo', name, machine, 1, revision, mine, now, pick(times), pick(times), next() < 0.5],
        ]),
    )
    await database.execute(
      `INSERT INTO activation_grant (id, namespace, name, machine, sequence, revision, template, granted_at_ms, begin_by_ms,
         ends_at_ms, begun) VALUES ?`,
      [grants],
    )
    for (const trusted of [false, true]) {
      const goal: GoalAt = { namespace: 'demo', name, revision: 2, templateHash: mine, trusted }
      for (const listening of [
        { silentMs: 60_000, upMs: undefined },
        { silentMs: 1e12, upMs: 60_000 },
      ]) {
        const counted = await countMachines(database, goal, listening)
        assert.equal(counted, await countInOneLook(database, goal, listening), `seed ${seed}`)
        assert.is(counted.desired, 40)
      }
    }
  }
})

test.after(async () => {
  await parts.disposeAsync()
})
test.run()
