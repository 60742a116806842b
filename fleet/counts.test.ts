import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import type { MachineState } from '../api/fleetApi.ts'
import { startDatabase } from '../hack/parts/database.ts'
import { latelyMs } from '../rollout/silence.ts'
import { type Known, tally } from '../rollout/tally.ts'
import { Database, type Sql } from '../runtime/sql.ts'
import { random } from '../test/simulation/xorshift.ts'
import { countMachines, type GoalAt, type Listening, reportSlackMs } from './counts.ts'
import { nowMs } from './machines.ts'

const test = suite('counts')
const parts = new AsyncDisposableStack()
const server = parts.use(await startDatabase())
const database = parts.use(new Database(await server.createSchema('fleet')))
await database.migrate(join(import.meta.dirname, 'migrations'))

interface Row {
  state: MachineState
  revision: number
  template: string
  running: string | null
  grantId: string | null
  grantRevision: number
  grantTemplate: string
  beginByMs: number
  endsAtMs: number
  begun: number
  lastSeenMs: number
  nowMs: number
}

/** Everything there is to know of each machine, read row by row. */
async function lookAtEach(
  sql: Sql,
  { namespace, name, revision, templateHash }: GoalAt,
  { silentMs, upMs }: Listening,
): Promise<Known[]> {
  const rows = await sql.query<Row>(
    `SELECT mg.state, mg.revision, mg.template, mg.running, mg.grant_id AS grantId, mg.grant_revision AS grantRevision,
       mg.grant_template AS grantTemplate, mg.grant_begin_by_ms AS beginByMs, mg.grant_ends_at_ms AS endsAtMs,
       mg.grant_begun AS begun, m.last_seen_ms AS lastSeenMs, ${nowMs} AS nowMs
     FROM machine_goal mg JOIN machine m ON m.name = mg.machine WHERE mg.namespace = ? AND mg.name = ?`,
    [namespace, name],
  )
  return rows.map((row) => {
    const { state, lastSeenMs, beginByMs } = row
    const quietMs = row.nowMs - lastSeenMs
    const endsAtMs = row.begun ? row.endsAtMs : beginByMs + reportSlackMs
    const over = row.begun > 0 || lastSeenMs < beginByMs ? 'Unresolved' : 'None'
    const silent = quietMs < silentMs + latelyMs ? 'LatelySilent' : 'Silent'
    const heard = upMs !== undefined && quietMs >= upMs ? 'NotYet' : quietMs >= silentMs ? silent : 'Heard'
    return {
      ...{ machines: 1, state, heard, runs: row.running === templateHash },
      ...{ ofTemplate: row.template === templateHash, ofRevision: row.revision === revision },
      granted: row.grantId === null ? 'None' : endsAtMs > row.nowMs ? 'Open' : over,
      ...{ grantOfTemplate: row.grantTemplate === templateHash, grantOfRevision: row.grantRevision === revision },
    }
  })
}

test('what two looks count is what a look at each row counts, whatever the rows say', async () => {
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
      `INSERT INTO machine_goal (namespace, name, machine, state, template, revision, running, grant_id, grant_revision,
         grant_template, grant_begin_by_ms, grant_ends_at_ms, grant_begun) VALUES ?`,
      [
        names.map((machine, at) => [
          ...['demo', name, machine],
          pick(['Waiting', 'Fetching', 'Fetched', 'Activating', 'Healthy', 'Failed', 'RolledBack']),
          ...[pick([mine, other]), pick([1, 2]), pick([mine, other, null])],
          ...(next() < 0.7
            ? [`${round}-${at}`, pick([1, 2]), pick([mine, other]), pick(times), pick(times), next() < 0.5]
            : [null, null, null, null, null, false]),
        ]),
      ],
    )
    for (const trusted of [false, true]) {
      const goal: GoalAt = { namespace: 'demo', name, revision: 2, templateHash: mine, trusted }
      for (const listening of [
        { silentMs: 60_000, upMs: undefined },
        { silentMs: 1e12, upMs: 60_000 },
      ]) {
        const counted = await countMachines(database, goal, listening)
        const each = tally(await lookAtEach(database, goal, listening), goal)
        assert.equal(counted, { ...each, highestSequence: 0 }, `seed ${seed}`)
        assert.is(counted.desired, 40)
      }
    }
  }
})

test.after(async () => {
  await parts.disposeAsync()
})
test.run()
