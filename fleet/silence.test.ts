import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import type { GoalReport } from '../api/fleetApi.ts'
import { until } from '../hack/parts/process.ts'
import type { GoalPayload } from '../rollout/envelope.ts'
import { systemClock } from '../runtime/clock.ts'
import { createLogger } from '../runtime/log.ts'
import type { Database } from '../runtime/sql.ts'
import { countsOf, goal, machine, old, parts, report, say, sayIndex, startRegion } from './fixture.ts'
import { Roster } from './roster.ts'

const test = suite('machines that fall silent')

/** Not heard for so long. */
const silence = (database: Database, names: string[], ms: number) =>
  database.execute('UPDATE machine SET last_seen_ms = last_seen_ms - ? WHERE name IN (?)', [ms, names])

const unreachableMs = 1500

/** So many machines that have heard of a goal, `updated` of them running it, at servers that have been up long enough. */
async function crowd(size: number, updated: number) {
  const region = await startRegion({ unreachableMs })
  const payload = goal(1, { maxUnavailable: '100%', target: { machines: updated, percent: 0 } })
  const machines = await Promise.all(Array.from({ length: size }, (_, n) => machine(region.database, `m${n}`)))
  const { url } = region.replicas[0]
  await Promise.all(machines.map((m) => m.poll(url)))
  await say(region.replicas, payload)
  const poll = (n: number) => {
    const state = n < updated ? 'Healthy' : 'Fetched'
    return machines[n]?.poll(url, [report(payload, { state, running: n < updated ? payload.templateHash : old })])
  }
  const pollAll = (but: number[] = []) => Promise.all(machines.map((_, n) => (but.includes(n) ? undefined : poll(n))))
  await pollAll()
  // a server that is young does not know who was silent before
  const young = performance.now() + unreachableMs + 100
  await until('the server is not young any more', () => performance.now() > young)
  await silence(
    region.database,
    machines.map(({ name }) => name),
    10_000,
  )
  await pollAll()
  return { ...region, payload, machines, poll, counts: () => countsOf(region.replicas[0]) }
}

test('a machine that falls silent before it is granted is exempt; one that does after it has failed', async () => {
  const { database, counts } = await crowd(8, 1)
  assert.equal([(await counts())?.failed, (await counts())?.unreachable], [0, 0])
  await silence(database, ['m7'], 5000)
  assert.equal([(await counts())?.failed, (await counts())?.unreachable], [0, 1])
  await silence(database, ['m7'], 3_600_000)
  await silence(database, ['m0'], 5000)
  const now = await counts()
  assert.equal([now?.failed, now?.unreachable, now?.healthy, now?.manySilent], [1, 1, 0, false])
  assert.equal(now?.failures[0]?.machine, 'm0')
})

test('one that was granted and did not come back has failed only once its grant is over', async () => {
  const { database, replicas, payload, machines, counts } = await crowd(8, 0)
  const granting = { ...payload, sequence: 2, target: { machines: 1, percent: 0 } }
  await say(replicas, granting)
  const waiting = report({ ...granting, revision: 1 }, { running: old })
  assert.is((await machines[0]?.poll(replicas[0].url, [waiting]))?.grants.length, 1)
  await silence(database, ['m0'], 5000)
  assert.equal([(await counts())?.failed, (await counts())?.unreachable], [0, 0], 'it may be at it')
  await database.execute(
    `UPDATE machine_goal SET grant_begin_by_ms = grant_begin_by_ms - 80000,
       grant_ends_at_ms = grant_ends_at_ms - 200000`,
  )
  await silence(database, ['m0'], 90_000)
  assert.is((await counts())?.failed, 1)
})

test('a server that was away does not take anybody for lost', async () => {
  const { database, replicas, payload, machines } = await crowd(4, 0)
  await say(replicas, { ...payload, sequence: 2, target: { machines: 1, percent: 0 } })
  const waiting = report({ ...payload, sequence: 2 }, { running: old })
  assert.is((await machines[0]?.poll(replicas[0].url, [waiting]))?.grants.length, 1)
  await database.execute(
    `UPDATE machine_goal SET grant_begin_by_ms = grant_begin_by_ms - 80000,
       grant_ends_at_ms = grant_ends_at_ms - 200000`,
  )
  await silence(database, ['m0', 'm1', 'm2', 'm3'], 90_000)
  const after = await startRegion({ unreachableMs }, database)
  const counts = await countsOf(after.replicas[0])
  assert.equal([counts?.failed, counts?.unreachable, counts?.manySilent], [0, 0, false])
})

test('a server that starts grants only what is right whatever those it has not heard yet are doing', async () => {
  const { database, payload, machines } = await crowd(4, 0)
  await silence(
    database,
    machines.map(({ name }) => name),
    10_000,
  )
  const after = await startRegion({}, database)
  const [{ url }] = after.replicas
  const all = { ...payload, sequence: 2, maxUnavailable: 2, target: { machines: 0, percent: 100 } }
  await say(after.replicas, all)
  // so that what it hears now is later than when it began, however long a look takes
  const since = performance.now()
  await until('it has listened for a while', () => performance.now() - since > 1000)
  const ask = async (n: number) => (await machines[n]?.poll(url, [report(all, { running: old })]))?.grants.length
  // before it began two may have been granted what its database does not know
  assert.equal([await ask(0), await ask(1), await ask(2)], [0, 0, 1])
  assert.equal([await ask(3), await ask(0)], [1, 0])
})

test('a sequence of before a restore that a machine still has is reported', async () => {
  const { replicas, payload, machines, counts } = await crowd(2, 0)
  assert.is((await counts())?.highestSequence, undefined)
  await machines[0]?.poll(replicas[0].url, [report(payload, { sequence: 99 })])
  assert.is((await counts())?.highestSequence, 99)
})

test('while many fall silent at once nothing is granted, unless it goes back', async () => {
  const { database, replicas, payload, machines, counts } = await crowd(8, 2)
  await silence(database, ['m0', 'm1', 'm6'], 5000)
  const now = await counts()
  assert.equal([now?.failed, now?.unreachable, now?.manySilent], [0, 3, true])
  const more = { ...payload, sequence: 3, target: { machines: 0, percent: 100 } }
  await say(replicas, more)
  const ask = async (of: typeof more) =>
    (await machines[3]?.poll(replicas[0].url, [report(of, { running: old })]))?.grants.length
  assert.is(await ask(more), 0)
  // after a while it is no longer one event: those that changed and are silent have failed
  await silence(database, ['m0', 'm1', 'm6'], 700_000)
  assert.equal([(await counts())?.failed, (await counts())?.manySilent], [2, false])
  await silence(database, ['m0', 'm1', 'm6'], -700_000)
  const back = { ...more, sequence: 4, revision: 2, rollback: true }
  await say(replicas, back)
  assert.is(await ask(back), 1)
})

test('who dies in the middle of an activation keeps others from going on, but not from going back', async () => {
  const { database, replicas, payload, machines } = await crowd(8, 2)
  const [{ url }] = replicas
  const ask = async (of: GoalPayload, n: number, more: Partial<GoalReport> = {}) => {
    await say(replicas, of)
    return (await machines[n]?.poll(url, [report(of, { running: old, ...more })]))?.grants
  }
  const on = { ...payload, target: { machines: 0, percent: 100 }, failureThreshold: '50%', maxUnavailable: 1 }
  const [grant] = (await ask({ ...on, sequence: 2 }, 7)) ?? []
  assert.ok(grant)
  await ask({ ...on, sequence: 3 }, 7, { state: 'Activating', grantId: grant.id })
  await database.execute('UPDATE machine_goal SET grant_ends_at_ms = grant_ends_at_ms - 200000')
  assert.equal(await ask({ ...on, sequence: 4 }, 3), [], 'it was heard of just now')
  await silence(database, ['m7'], 5000)
  assert.equal(await ask({ ...on, sequence: 5 }, 3), [])
  assert.is((await ask({ ...on, sequence: 6, revision: 2, rollback: true }, 3))?.length, 1)
})

test('a machine that fails after every wave was complete holds up nobody', async () => {
  const { database, replicas, payload, machines, counts } = await crowd(8, 7)
  const all = { ...payload, sequence: 2, target: { machines: 0, percent: 100 } }
  await say(replicas, all)
  const [{ url }] = replicas
  await machines[6]?.poll(url, [report(all, { state: 'RolledBack', running: old, reason: 'ActivationFailed' })])
  const newcomer = await machine(database, 'newcomer')
  const ask = async () => (await newcomer.poll(url, [report(all, { running: old })])).grants.length
  await newcomer.poll(url)
  assert.equal([await ask(), (await counts())?.halted], [0, true])
  await sayIndex(replicas, all, { settled: true })
  assert.equal([await ask(), (await counts())?.halted, (await counts())?.failed], [1, false, 1])
})

test('who was not heard for a day is off the roster, and back when it polls', async () => {
  const { database, replicas, machines, payload, counts } = await crowd(4, 0)
  const roster = new Roster({ database, clock: systemClock, log: createLogger('test', 'silent') })
  await silence(database, ['m0'], 86_300_000)
  assert.equal(await roster.forgetSilent(), [])
  await silence(database, ['m0'], 200_000)
  assert.equal(await roster.forgetSilent(), ['m0'])
  assert.is((await counts())?.desired, 3)
  await machines[0]?.poll(replicas[0].url, [report(payload, {})])
  assert.is((await counts())?.desired, 4)
})

test.after(async () => {
  await parts.disposeAsync()
})
test.run()
