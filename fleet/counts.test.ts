import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { startDatabase } from '../hack/parts/database.ts'
import { Database, type Sql } from '../runtime/sql.ts'
import { random } from '../test/simulation/xorshift.ts'
import { type Counted, countMachines, type GoalAt, reportSlackMs } from './counts.ts'
import { nowMs } from './machines.ts'

const test = suite('counts')
const parts = new AsyncDisposableStack()
const server = parts.use(await startDatabase())
const database = parts.use(new Database(await server.createSchema('fleet')))
await database.migrate(join(import.meta.dirname, 'migrations'))

const open = (grant: 'g' | 'other') =>
  `NOT ${grant}.done AND IF(${grant}.begun, ${grant}.ends_at_ms, ${grant}.begin_by_ms + ${reportSlackMs}) > ${nowMs}`
const isOpen = `(g.id IS NOT NULL AND ${open('g')})`
/** A machine may still act on what an earlier revision allowed it: it has not heard of this one yet. */
const isOpenForAnother = `EXISTS (SELECT 1 FROM activation_grant other WHERE other.namespace = mg.namespace
  AND other.name = mg.name AND other.machine = mg.machine AND ${open('other')})`
/** Its time is over and the machine has not been heard since it was given: it may have failed in the middle. */
const isLost = `(g.id IS NOT NULL AND NOT g.done AND NOT ${isOpen} AND m.last_seen_ms < g.begin_by_ms)`
const hasFailed = `((mg.state IN ('Failed', 'RolledBack') AND mg.template = ? AND mg.revision = ?) OR ${isLost})`

const rows = `machine_goal mg
  JOIN machine m ON m.name = mg.machine
  LEFT JOIN activation_grant g ON g.namespace = mg.namespace AND g.name = mg.name AND g.machine = mg.machine
    AND g.revision = ?
  WHERE mg.namespace = ? AND mg.name = ?`

async function countInOneLook(sql: Sql, goal: GoalAt, silentMs: number): Promise<Counted> {
  const { namespace, name, revision, templateHash, rollback } = goal
  const [row] = await sql.query<Record<keyof Counted, number | null>>(
    `SELECT COUNT(*) AS desired,
       SUM(mg.running <=> ? OR (mg.template = ? AND mg.state NOT IN ('Waiting', 'Fetching'))) AS fetched,
       SUM(mg.running <=> ?) AS updated,
       SUM(mg.running <=> ? AND mg.template = ? AND mg.state = 'Healthy' AND m.last_seen_ms > ${nowMs} - ?) AS healthy,
       SUM(${hasFailed}) AS failed,
       SUM(m.last_seen_ms <= ${nowMs} - ? AND NOT ${hasFailed}) AS unreachable,
       SUM(${isOpen} OR mg.state IN ('Activating', 'Failed') OR (NOT ? AND ${isLost}) OR ${isOpenForAnother})
         AS unavailable,
       SUM(mg.running <=> ? OR ${isOpen}) AS updatedOrGranted
     FROM ${rows}`,
    [
      ...[templateHash, templateHash, templateHash, templateHash, templateHash, silentMs],
      ...[templateHash, revision, silentMs, templateHash, revision, rollback, templateHash],
      ...[revision, namespace, name],
    ],
  )
  const value = (key: keyof Counted) => Number(row?.[key] ?? 0)
  return {
    desired: value('desired'),
    fetched: value('fetched'),
    updated: value('updated'),
    healthy: value('healthy'),
    failed: value('failed'),
    unreachable: value('unreachable'),
    unavailable: value('unavailable'),
    updatedOrGranted: value('updatedOrGranted'),
  }
}

test('what three looks count is what one look at everything counts, whatever the rows say', async () => {
  const seed = Math.floor(Math.random() * 2 ** 31)
  const next = random(seed)
  const pick = <T>(from: T[]): T => from[Math.floor(next() * from.length)] as T
  const [mine, other] = ['a'.repeat(16), 'b'.repeat(16)]
  const now = Date.now()
  // far enough from every bound that the time this takes changes nothing
  const times = [-3_600_000, -600_000, 600_000, 3_600_000].map((ms) => now + ms)
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
          ...['demo', name, machine, 1, revision, mine, now, pick(times), pick(times), next() < 0.5, next() < 0.3],
        ]),
    )
    await database.execute(
      `INSERT INTO activation_grant (id, namespace, name, machine, sequence, revision, template, granted_at_ms, begin_by_ms,
         ends_at_ms, begun, done) VALUES ?`,
      [grants],
    )
    for (const rollback of [false, true]) {
      const goal: GoalAt = { namespace: 'demo', name, revision: 2, templateHash: mine, rollback }
      const counted = await countMachines(database, goal, 60_000)
      assert.equal(counted, await countInOneLook(database, goal, 60_000), `seed ${seed}`)
      assert.is(counted.desired, 40)
    }
  }
})

test.after(async () => {
  await parts.disposeAsync()
})
test.run()
