import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { ShoalError } from '../api/errors.ts'
import type { GoalReport, Grant } from '../api/fleetApi.ts'
import { until } from '../hack/parts/process.ts'
import { signGoal, signIndex } from '../rollout/envelope.ts'
import { ApiClient } from '../runtime/apiClient.ts'
import { generateSigningKey } from '../runtime/dsse.ts'
import { signMachineToken } from '../runtime/identity.ts'
import {
  authority,
  countsOf,
  goal,
  hubKey,
  issued,
  machine,
  old,
  parts,
  region,
  report,
  say,
  sayIndex,
  startRegion,
  type TestMachine,
  web,
} from './fixture.ts'

const test = suite('fleet')

test('however many ask at once, at two servers, no more are granted than the budget allows', async () => {
  const { database, replicas } = await startRegion()
  const payload = goal(1, { maxUnavailable: '10%' })
  const machines = await Promise.all(Array.from({ length: 60 }, (_, n) => machine(database, `m${n}`)))
  await say(replicas, payload)
  const urls = replicas.map(({ url }) => url)
  await Promise.all(machines.map((m, n) => m.poll(urls[n % 2] ?? '')))
  const running = new Map<TestMachine, Grant>()
  const updated = new Set<TestMachine>()
  let most = 0
  for (let round = 0; round < 40 && updated.size < machines.length; round++) {
    // Those that were granted last time are done now.
    for (const [m, grant] of running) {
      updated.add(m)
      await m.poll(urls[round % 2] ?? '', [
        report(payload, { state: 'Healthy', running: payload.templateHash, grantId: grant.id }),
      ])
    }
    running.clear()
    const waiting = machines.filter((m) => !updated.has(m))
    const answers = await Promise.all(
      waiting.map((m, n) => m.poll(urls[n % 2] ?? '', [report(payload, { running: old })])),
    )
    answers.forEach(({ grants: [grant] }, n) => {
      const m = waiting[n]
      if (grant && m) running.set(m, grant)
    })
    most = Math.max(most, running.size)
  }
  assert.is(updated.size, 60)
  assert.is(most, 6)
  assert.is((await countsOf(replicas[0]))?.healthy, 60)
})

test('no more machines are updated than the target says', async () => {
  const { database, replicas } = await startRegion()
  const payload = goal(1, { target: { machines: 2, percent: 0 }, maxUnavailable: '100%' })
  const machines = await Promise.all(Array.from({ length: 10 }, (_, n) => machine(database, `m${n}`)))
  await Promise.all(machines.map((m) => m.poll(replicas[0].url)))
  await say(replicas, payload)
  const answers = await Promise.all(
    machines.map((m, n) => m.poll(replicas[n % 2]?.url ?? '', [report(payload, { running: old })])),
  )
  assert.is(answers.flatMap(({ grants }) => grants).length, 2)
})

test('what an earlier revision allowed a machine holds budget until it has heard of the next', async () => {
  const { database, replicas } = await startRegion()
  const [{ url }] = replicas
  const first = goal(1, { maxUnavailable: 1 })
  const next = goal(2, { maxUnavailable: 1, template: web('./next') })
  const [slow, other] = [await machine(database, 'slow'), await machine(database, 'other')]
  for (const m of [slow, other]) await m.poll(url)
  await say(replicas, first)
  assert.is((await slow.poll(url, [report(first, { running: old })])).grants.length, 1)
  await say(replicas, next)
  const ask = async (m: TestMachine, more: Partial<GoalReport> = {}) =>
    (await m.poll(url, [report(next, { running: old, ...more })])).grants.length
  assert.is(await ask(other), 0, 'the slow one may begin any moment')
  assert.is(await ask(slow, { state: 'Activating' }), 0)
  assert.is(await ask(other), 0, 'and has begun')
  assert.is(await ask(slow, { state: 'Fetching' }), 0)
  assert.is(await ask(other), 1, 'it is over, and will not begin')
})

test('a machine that is granted and asks again gets the same grant', async () => {
  const { database, replicas } = await startRegion()
  const payload = goal(1)
  const m = await machine(database, 'm')
  await m.poll(replicas[0].url)
  await say(replicas, payload)
  const [first] = (await m.poll(replicas[0].url, [report(payload, {})])).grants
  const [again] = (await m.poll(replicas[1].url, [report(payload, {})])).grants
  assert.ok(first)
  assert.is(again?.id, first.id)
})

test('without an index that moves on there is no grant, and with the next one there is', async () => {
  const { database, replicas } = await startRegion({ indexLifetimeMs: 300 })
  const payload = goal(1)
  const [m, other] = [await machine(database, 'm'), await machine(database, 'other')]
  for (const each of [m, other]) await each.poll(replicas[0].url)
  await say(replicas, payload)
  const stale = async () => (await other.poll(replicas[0].url, [report(payload, { running: old })])).grants.length === 0
  await until('the index is stale', stale, { timeoutMs: 2000 })
  // The same index again does not make it fresh.
  const repeated = { region, issuedAt: issued.at, goals: { 'demo/web': { revision: 1, sequence: 1 } } }
  await replicas[0].fleet.putIndex(repeated, signIndex(repeated, hubKey))
  assert.is((await m.poll(replicas[0].url, [report(payload, {})])).grants.length, 0)
  await sayIndex(replicas, payload)
  const [grant] = (await m.poll(replicas[0].url, [report(payload, {})])).grants
  assert.ok(grant, 'the index moved on')
  assert.ok(grant.beginWithinMs <= 300, 'a grant begins no later than its index is good for')
})

test('a goal the index names with another sequence is not granted', async () => {
  const { database, replicas } = await startRegion()
  const payload = goal(5)
  const m = await machine(database, 'm')
  await say(replicas, payload)
  await sayIndex(replicas, goal(6))
  assert.is((await m.poll(replicas[0].url, [report(payload, {})])).grants.length, 0)
})

test('a lower sequence is refused; a goal the index no longer names is not offered, and comes back with a higher one', async () => {
  const { database, replicas } = await startRegion()
  const m = await machine(database, 'm')
  await say(replicas, goal(9))
  const lower = goal(8)
  assert.is(await replicas[0].fleet.put(lower, signGoal(lower, hubKey)), false)
  assert.equal((await m.poll(replicas[0].url)).goals, [signGoal(goal(9), hubKey)])
  const empty = { region, issuedAt: ++issued.at, goals: {} }
  await replicas[0].fleet.putIndex(empty, signIndex(empty, hubKey))
  assert.equal((await m.poll(replicas[0].url)).goals, [])
  assert.is(await replicas[0].fleet.put(lower, signGoal(lower, hubKey)), false)
  await say(replicas, goal(10))
  assert.is((await m.poll(replicas[0].url)).goals.length, 1)
})

test('a machine that failed halts the revision in its region, and is reported with its reason', async () => {
  const { database, replicas } = await startRegion()
  const payload = goal(1)
  const [bad, other] = [await machine(database, 'bad'), await machine(database, 'other')]
  await Promise.all([bad, other].map((m) => m.poll(replicas[0].url)))
  await say(replicas, payload)
  const failed = report(payload, {
    state: 'RolledBack',
    running: old,
    reason: 'ActivationFailed',
    message: 'no health',
  })
  await bad.poll(replicas[0].url, [failed])
  assert.is((await other.poll(replicas[1].url, [report(payload, { running: old })])).grants.length, 0)
  const counts = await countsOf(replicas[1])
  assert.is(counts?.failed, 1)
  assert.is(counts?.halted, true)
  assert.equal(counts?.failures, [{ machine: 'bad', reason: 'ActivationFailed', message: 'no health' }])
  // The next revision starts without that.
  const next = goal(2, { template: web('./other') })
  await say(replicas, next)
  assert.is((await countsOf(replicas[0]))?.failed, 0)
  assert.is((await other.poll(replicas[0].url, [report(next, { running: old })])).grants.length, 1)
})

test('a goal that was deleted and made again has nothing to do with what was halted, failed and granted before', async () => {
  const { database, replicas } = await startRegion()
  const [{ url }] = replicas
  const [bad, other, third] = await Promise.all(['bad', 'other', 'third'].map((name) => machine(database, name)))
  const first = goal(1, { maxUnavailable: '100%' })
  for (const m of [bad, other, third]) await m?.poll(url)
  await say(replicas, first)
  assert.is((await third?.poll(url, [report(first, { running: old })]))?.grants.length, 1)
  await bad?.poll(url, [report(first, { state: 'RolledBack', running: old })])
  assert.is((await other?.poll(url, [report(first, { running: old })]))?.grants.length, 0)
  assert.is((await countsOf(replicas[0]))?.halted, true)
  const again = goal(5, { uid: 'another', revision: 1, maxUnavailable: 2 })
  await say(replicas, again)
  assert.equal([(await countsOf(replicas[0]))?.halted, (await countsOf(replicas[0]))?.failed], [false, 0])
  // the third may still begin what it was granted then: that holds budget
  assert.is((await other?.poll(url, [report(again, { running: old })]))?.grants.length, 1)
  assert.is((await bad?.poll(url, [report(again, { running: old })]))?.grants.length, 0)
  assert.is((await third?.poll(url, [report(again, { state: 'Fetching', running: old })]))?.grants.length, 0)
  assert.is((await bad?.poll(url, [report(again, { running: old })]))?.grants.length, 1)
})

test('a number that a restored hub uses for another template starts afresh', async () => {
  const { database, replicas } = await startRegion()
  const m = await machine(database, 'm')
  await m.poll(replicas[0].url)
  const lost = goal(2)
  await say(replicas, lost)
  await m.poll(replicas[0].url, [report(lost, { state: 'RolledBack', running: old })])
  const used = goal(3, { revision: 2, template: web('./other') })
  await say(replicas, used)
  assert.is((await m.poll(replicas[0].url, [report(used, { running: old })])).grants.length, 1)
})

test('a machine that runs the template already counts as updated without a grant', async () => {
  const { database, replicas } = await startRegion()
  const payload = goal(1)
  const m = await machine(database, 'm')
  await m.poll(replicas[0].url)
  await say(replicas, payload)
  const { grants } = await m.poll(replicas[0].url, [
    report(payload, { state: 'Healthy', running: payload.templateHash }),
  ])
  assert.is(grants.length, 0)
  const counts = await countsOf(replicas[0])
  assert.equal([counts?.updated, counts?.healthy, counts?.fetched], [1, 1, 1])
})

test('a goal reaches only machines that have its labels and serve its namespace', async () => {
  const { database, replicas } = await startRegion()
  await say(replicas, goal(1))
  const labelled = await machine(database, 'a')
  const other = await machine(database, 'b', { app: 'other' })
  const foreign = await machine(database, 'c', { app: 'web' }, ['someone-else'])
  assert.is((await labelled.poll(replicas[0].url)).goals.length, 1)
  assert.is((await other.poll(replicas[0].url)).goals.length, 0)
  assert.is((await foreign.poll(replicas[0].url)).goals.length, 0)
  assert.is((await countsOf(replicas[0]))?.desired, 1)
})

test('a machine can’t speak for another, nor without a key the region knows', async () => {
  const { database, replicas } = await startRegion()
  await machine(database, 'victim')
  const forged = await signMachineToken(generateSigningKey().privateKeyPem, { machine: 'victim', region })
  await using client = new ApiClient({ baseUrl: replicas[0].url, ca: authority.certificate, token: () => forged })
  const refused = await client
    .request('POST', '/v1/agent/poll', { body: { agentVersion: '1', labels: {}, namespaces: [], goals: [] } })
    .catch((error: unknown) => error)
  assert.instance(refused, ShoalError)
  assert.is((refused as ShoalError).code, 'Unauthorized')
})

test('each piece of an artifact is lent to one machine at a time, whichever server is asked, and again when it falls silent', async () => {
  const { database, replicas } = await startRegion({ originLeaseMs: 600 })
  await say(replicas, goal(1))
  const machines = await Promise.all(['a', 'b', 'c'].map((name) => machine(database, name)))
  for (const m of machines) await m.poll(replicas[0].url)
  /** Of each machine asked, the pieces it may read. */
  const pieces = async (asked: TestMachine[], more: object = {}) => {
    const answers = await Promise.all(
      asked.map((m, n) => m.announce(replicas[n % 2]?.url ?? '', { totalPieces: 8, ...more })),
    )
    assert.is(new Set(answers.map((answer) => answer.key)).size, 1, 'one swarm, one key')
    const lent = answers.map(({ origin }) => origin?.pieces ?? [])
    assert.is(new Set(lent.flat()).size, lent.flat().length, 'no piece twice')
    return lent
  }
  const covered = async (asked: TestMachine[], timeoutMs: number) =>
    until('every piece is lent', async () => (await pieces(asked)).flat().length === 8, {
      timeoutMs,
    })
  await until('someone may read the bucket', async () => (await pieces(machines)).flat().length > 0)
  await covered(machines, 10_000)
  const [holder, ...rest] = machines as [TestMachine, ...TestMachine[]]
  await covered(rest, 3000)
  // Who has everything needs the bucket no more, and others get it from there.
  await until('nobody reads the bucket', async () => {
    // Said again, as a replica that has just become the tracker did not hear it.
    await holder.announce(replicas[0].url, { havePieces: 8, totalPieces: 8, originBytes: 10 })
    return (await pieces(rest, { havePieces: 1 })).flat().length === 0
  })
})

test('how far an artifact has come, and how long it took, is known to every replica', async () => {
  const { database, replicas } = await startRegion()
  const now = goal(1)
  await say(replicas, now)
  const machines = await Promise.all(['a', 'b', 'c'].map((name) => machine(database, name)))
  const [a, b, c] = machines as [TestMachine, TestMachine, TestMachine]
  for (const each of machines) await each.poll(replicas[0].url)
  const pieces = (bits: number) => Buffer.from([bits]).toString('base64')
  await a.poll(replicas[0].url, [report(now, { fetchMs: 1000 })])
  await b.poll(replicas[1].url, [report(now, { fetchMs: 3000 })])
  const announce = async () => {
    await Promise.all([a, b].map((each, i) => each.announce(replicas[i]?.url ?? '', { havePieces: 4 })))
    await c.announce(replicas[1].url, { havePieces: 3, pieces: pieces(0b1110_0000) })
  }
  for (const replica of replicas)
    assert.equal(
      await until('it is seen', async () => {
        await announce()
        const fetch = (await countsOf(replica))?.fetch
        return fetch?.fetching === 1 && fetch.complete === 2 ? fetch : undefined
      }),
      {
        ...{ complete: 2, fetching: 1, fewestCopies: 2, missingPieces: 0, had: { p50: 100, p90: 75, last: 75 } },
        seconds: { machines: 2, p50: 1, p90: 3, last: 3 },
      },
    )
  // an agent that starts again does not know how long it took; the fleet does
  await b.poll(replicas[0].url, [report(now, { state: 'Healthy' })])
  await c.poll(replicas[0].url, [report(now, { fetchMs: 2000 })])
  const seconds = async () => (await countsOf(replicas[0]))?.fetch?.seconds
  assert.equal(await until('all three', async () => ((await seconds())?.machines === 3 ? seconds() : undefined)), {
    ...{ machines: 3, p50: 2, p90: 3, last: 3 },
  })
})

test('an announce of more pieces than the artifact can have is refused', async () => {
  const { database, replicas } = await startRegion()
  const m = await machine(database, 'm')
  await say(replicas, goal(1))
  const code = (totalPieces: number) =>
    m.announce(replicas[0].url, { totalPieces }).then(
      () => 'answered',
      (error: unknown) => (error as ShoalError).code,
    )
  assert.equal([await code(8), await code(9), await code(2 ** 52)], ['answered', 'Invalid', 'Invalid'])
})

test('the descriptor must be the one that was signed, of an artifact that a goal names', async () => {
  const { database, replicas } = await startRegion()
  const m = await machine(database, 'm')
  await say(replicas, goal(1))
  const ask = (artifact: string) =>
    m
      .at(replicas[0].url)
      .bytes('GET', `/v1/agent/descriptor/demo/${artifact}`)
      .catch((error: unknown) => (error as ShoalError).code)
  assert.is(await ask('unknown'), 'NotFound')
  assert.is(await ask('web-1'), 'ChecksumMismatch')
})

test.after(async () => {
  await parts.disposeAsync()
})
test.run()
