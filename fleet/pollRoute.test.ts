import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { until } from '../hack/parts/process.ts'
import { signGoal } from '../rollout/envelope.ts'
import {
  countsOf,
  goal,
  hubKey,
  issued,
  machine,
  old,
  parts,
  type Replica,
  report,
  say,
  sayIndex,
  startRegion,
  type TestMachine,
  web,
} from './fixture.ts'

const test = suite('polls that are held')
const waitMs = 8000

/** A poll that is held, and whether it was answered. */
function hold(m: TestMachine, url: string, goals: Parameters<TestMachine['poll']>[1] = []) {
  const state = { answered: false, answer: m.poll(url, goals, waitMs) }
  state.answer.then(
    () => {
      state.answered = true
    },
    () => undefined,
  )
  return state
}
/** So many polls are held here. */
const held = ({ metrics }: Replica, count: number) =>
  until(
    `${count} are held`,
    async () => (await metrics.registry.getSingleMetric('shoal_held_polls')?.get())?.values[0]?.value === count,
  )

test('a goal reaches a machine that is held as soon as it is put, and those it does not select are held on', async () => {
  const { database, replicas } = await startRegion()
  const [replica] = replicas
  const [m, other] = [await machine(database, 'm'), await machine(database, 'other', { app: 'other' })]
  const [its, others] = [hold(m, replica.url), hold(other, replica.url)]
  await held(replica, 2)
  const beganMs = performance.now()
  await say([replica], goal(1))
  assert.equal((await its.answer).goals, [signGoal(goal(1), hubKey)])
  assert.ok(performance.now() - beganMs < 1000)
  await held(replica, 1)
  assert.is(others.answered, false)
})

test('a goal put at one server reaches machines that another one holds', async () => {
  const { database, replicas } = await startRegion()
  const its = hold(await machine(database, 'm'), replicas[1].url)
  await held(replicas[1], 1)
  await say([replicas[0]], goal(1))
  assert.is((await its.answer).goals.length, 1)
})

test('who holds the goal is told nothing twice, and is answered with nothing at the end of its time', async () => {
  const { database, replicas } = await startRegion({ holdMs: 600 })
  const m = await machine(database, 'm')
  await say(replicas, goal(1))
  const beganMs = performance.now()
  const answer = await m.poll(replicas[0].url, [report(goal(1), { state: 'Fetching' })], waitMs)
  assert.equal([answer.goals, answer.grants, answer.index], [[], [], undefined])
  assert.ok(performance.now() - beganMs >= 450)
  // one that does not ask to wait is answered at once, and told when to come again
  const at = performance.now()
  const plain = await m.poll(replicas[0].url, [report(goal(1), { state: 'Fetching' })])
  assert.ok(performance.now() - at < 400)
  assert.ok(plain.pollAfterMs >= 80 && plain.pollAfterMs <= 120)
})

test('the index comes with a goal that the machine does not hold; the next of one it holds comes alone', async () => {
  const { database, replicas } = await startRegion()
  const [{ url }] = replicas
  const m = await machine(database, 'm')
  await say(replicas, goal(1))
  const first = await m.poll(url)
  assert.is(first.goals.length, 1)
  assert.ok(first.index)
  await say(replicas, goal(2))
  const next = await m.poll(url, [report(goal(1), { state: 'Fetching' })])
  assert.equal(next.goals, [signGoal(goal(2), hubKey)])
  assert.is(next.index, undefined)
})

test('the next machine is granted when another is done, while its poll is held', async () => {
  const { database, replicas } = await startRegion()
  const [{ url }] = replicas
  const payload = goal(1, { maxUnavailable: 1 })
  const [first, second] = [await machine(database, 'first'), await machine(database, 'second')]
  for (const m of [first, second]) await m.poll(url)
  await say(replicas, payload)
  const fetched = [report(payload, { running: old })]
  const [grant] = (await first.poll(url, fetched, waitMs)).grants
  assert.ok(grant)
  const waiting = hold(second, url, fetched)
  await held(replicas[0], 1)
  await replicas[0].fleet.counts()
  await first.poll(url, [report(payload, { state: 'Activating', grantId: grant.id, running: old })])
  await replicas[0].fleet.counts()
  assert.is(waiting.answered, false, 'one may be down at once')
  await first.poll(url, [report(payload, { state: 'Healthy', running: payload.templateHash, grantId: grant.id })])
  await replicas[0].fleet.counts()
  assert.is((await waiting.answer).grants.length, 1)
})

test('a machine that refused a goal is sent it again with the next index, and not before', async () => {
  const { database, replicas } = await startRegion()
  const m = await machine(database, 'm')
  await say(replicas, goal(1))
  const refusal = {
    ...report(goal(1), {}),
    sequence: 0,
    revision: 0,
    template: '',
    state: 'Waiting',
    reason: 'Unavailable',
  }
  const its = hold(m, replicas[0].url, [refusal as ReturnType<typeof report>])
  await held(replicas[0], 1)
  assert.is(its.answered, false)
  await sayIndex(replicas, goal(1))
  const answer = await its.answer
  assert.is(answer.goals.length, 1)
  assert.ok(answer.index)
})

test('a machine that polls anew lets go its poll that is held, and one that is gone is not kept', async () => {
  const { database, replicas } = await startRegion()
  const m = await machine(database, 'm')
  const before = hold(m, replicas[0].url)
  await held(replicas[0], 1)
  const after = hold(m, replicas[0].url)
  assert.equal((await before.answer).goals, [])
  assert.is(after.answered, false)
  await m.at(replicas[0].url)[Symbol.asyncDispose]()
  await after.answer.catch(() => undefined)
  await held(replicas[0], 0)
})

test('a server that stops answers whom it holds, and they come back spread over a poll', async () => {
  const { database, replicas } = await startRegion()
  const machines = await Promise.all(Array.from({ length: 20 }, (_, n) => machine(database, `m${n}`)))
  const polls = machines.map((m) => hold(m, replicas[0].url))
  await held(replicas[0], 20)
  replicas[0].stop()
  const after = (await Promise.all(polls.map(({ answer }) => answer))).map(({ pollAfterMs }) => pollAfterMs)
  assert.ok(Math.max(...after) <= 100)
  assert.ok(new Set(after).size > 5)
})

test('polls of many machines at once are written down by few statements', async () => {
  const { database, replicas } = await startRegion()
  const machines = await Promise.all(Array.from({ length: 100 }, (_, n) => machine(database, `m${n}`)))
  await Promise.all(machines.map((m) => m.poll(replicas[0].url)))
  await say(replicas, goal(1))
  const statements = async () => {
    const [row] = await database.query<{ Value: string }>("SHOW GLOBAL STATUS LIKE 'Questions'")
    return Number(row?.Value)
  }
  const before = await statements()
  await Promise.all(machines.map((m) => m.poll(replicas[0].url, [report(goal(1), { state: 'Fetching' })])))
  const took = (await statements()) - before
  assert.ok(took < 100, `${took} statements for 100 polls`)
  assert.is((await countsOf(replicas[0]))?.desired, 100)
})

test('a machine whose labels changed leaves one goal for another', async () => {
  const { database, replicas } = await startRegion()
  const m = await machine(database, 'm')
  await m.poll(replicas[0].url)
  await say(replicas, goal(1))
  assert.is((await countsOf(replicas[0]))?.desired, 1)
  const moved = await machine(database, 'm', { app: 'other' })
  assert.equal((await moved.poll(replicas[1].url)).goals, [])
  assert.is((await countsOf(replicas[0]))?.desired, 0)
  await m.poll(replicas[0].url).catch(() => undefined)
})

test('a machine that came while another server put a goal is selected when it polls again', async () => {
  const { database, replicas } = await startRegion()
  const m = await machine(database, 'm')
  await say(replicas, goal(1))
  await m.poll(replicas[0].url)
  await database.execute('DELETE FROM machine_goal')
  await m.poll(replicas[0].url)
  assert.is((await countsOf(replicas[0]))?.desired, 1)
  const next = goal(2, { template: web('./next'), selector: { matchLabels: {} } })
  await say(replicas, next)
  assert.is((await countsOf(replicas[0]))?.desired, 1)
  assert.ok(issued.at > 0)
})

test.after(async () => {
  await parts.disposeAsync()
})
test.run()
