import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { encodeDescriptor } from '../api/descriptor.ts'
import { ShoalError } from '../api/errors.ts'
import { type GoalReport, type Grant, pollAnswer } from '../api/fleetApi.ts'
import { startDatabase } from '../hack/parts/database.ts'
import { freePort, temporaryDir, until } from '../hack/parts/process.ts'
import { type GoalPayload, hashTemplate, signGoal, signIndex, template } from '../rollout/envelope.ts'
import { ApiClient } from '../runtime/apiClient.ts'
import { createAuthority, createServerCertificate } from '../runtime/certificates.ts'
import { systemClock } from '../runtime/clock.ts'
import { generateSigningKey, loadSigningKey } from '../runtime/dsse.ts'
import { signMachineToken } from '../runtime/identity.ts'
import { createLogger } from '../runtime/log.ts'
import { Metrics } from '../runtime/metrics.ts'
import { createServer, listen } from '../runtime/server.ts'
import { Database } from '../runtime/sql.ts'
import { Fleet } from './fleet.ts'
import { enrolMachine } from './machines.ts'

const test = suite('fleet')
const region = 'eu'
const parts = new AsyncDisposableStack()
const dir = parts.use(await temporaryDir('shoal-fleet')).path
const server = parts.use(await startDatabase())
const hubKey = loadSigningKey(generateSigningKey().privateKeyPem)
const authority = await createAuthority('test')
const { certificate, key } = await createServerCertificate(authority, ['127.0.0.1'])
const tls = { certFile: join(dir, 'tls.crt'), keyFile: join(dir, 'tls.key') }
await writeFile(tls.certFile, certificate)
await writeFile(tls.keyFile, key)
const descriptor = encodeDescriptor({
  name: 'web',
  pieceLengthBytes: 262_144,
  files: [{ path: 'server', sizeBytes: 10, executable: true }],
  pieceSha1: Buffer.alloc(20, 1),
  pieceSha256: Buffer.alloc(32, 2),
})

interface Replica {
  fleet: Fleet
  url: string
}
let schemas = 0

/** A region's database and two servers on it. */
async function startRegion(options: { indexLifetimeMs?: number; beginWithinMs?: number; originLeaseMs?: number } = {}) {
  const database = parts.use(new Database(await server.createSchema(`fleet_${++schemas}`), { connectionLimit: 20 }))
  await database.migrate(join(import.meta.dirname, 'migrations'))
  const replicas: Replica[] = []
  for (const _ of [1, 2]) {
    const port = await freePort()
    const url = `https://127.0.0.1:${port}`
    const metrics = new Metrics()
    const log = createLogger('test', 'silent')
    const fleet = new Fleet({
      region,
      database,
      keys: [hubKey],
      url,
      store: () => ({
        readAll: async () => descriptor,
        presignGet: async (at) => ({ url: `http://127.0.0.1/${at}`, expiresAtMs: Date.now() + 60_000 }),
      }),
      descriptorKey: (at) => `${at}.torrent`,
      clusters: () => [],
      certificate: () => certificate,
      clock: systemClock,
      log,
      metrics,
      pollMs: 100,
      beginWithinMs: options.beginWithinMs ?? 60_000,
      indexLifetimeMs: options.indexLifetimeMs ?? 60_000,
      unreachableMs: 60_000,
      announceMs: 100,
      originLeaseMs: options.originLeaseMs ?? 1000,
    })
    const http = createServer({ log, metrics, tls })
    await fleet.serve(http)
    await listen(http, { host: '127.0.0.1', port })
    const stop = new AbortController()
    const running = fleet.run(stop.signal)
    parts.defer(async () => {
      stop.abort()
      await running
      await http.close()
    })
    replicas.push({ fleet, url })
  }
  return { database, replicas: replicas as [Replica, Replica] }
}

/** A machine as its agent would be, as far as the fleet server sees it. */
async function machine(
  database: Database,
  name: string,
  labels: Record<string, string> = { app: 'web' },
  namespaces = ['demo'],
) {
  const { privateKeyPem, publicKeyPem } = generateSigningKey()
  await enrolMachine(database, { name, publicKey: publicKeyPem, labels, namespaces })
  const token = await signMachineToken(privateKeyPem, { machine: name, region })
  const client = (url: string) =>
    parts.use(new ApiClient({ baseUrl: url, ca: authority.certificate, token: () => token }))
  const clients = new Map<string, ApiClient>()
  const at = (url: string) => {
    const known = clients.get(url) ?? client(url)
    clients.set(url, known)
    return known
  }
  return {
    name,
    at,
    poll: (url: string, goals: GoalReport[] = []) =>
      at(url).request('POST', '/v1/agent/poll', {
        body: { agentVersion: '1', labels, namespaces, goals },
        schema: pollAnswer,
      }),
    announce: (url: string, more: object = {}) =>
      at(url).request<{ key: string; peers: object[]; origin?: { pieces: number[] } }>('POST', '/v1/agent/announce', {
        body: {
          ...{ namespace: 'demo', artifact: 'web-1', infoHash: 'b'.repeat(40), peerId: 'c'.repeat(40) },
          ...{ host: '127.0.0.1', port: 7000, havePieces: 0, totalPieces: 4, ...more },
        },
      }),
  }
}
type TestMachine = Awaited<ReturnType<typeof machine>>

const web = (command: string) =>
  template.parse({
    artifact: {
      name: 'web-1',
      digest: `sha256:${'a'.repeat(64)}`,
      sizeBytes: 128 << 10,
      key: 'demo/web-1/1',
      infoHash: 'b'.repeat(40),
      descriptorDigest: `sha256:${'d'.repeat(64)}`,
    },
    activation: { command: [command], stop: { timeout: '1s' }, deadline: '1s' },
  })

function goal(sequence: number, more: Partial<GoalPayload> = {}): GoalPayload {
  const made = more.template ?? web('./server')
  return {
    ...{ region, namespace: 'demo', name: 'web', uid: 'u', place: 'web', selector: { matchLabels: { app: 'web' } } },
    ...{ template: made, templateHash: hashTemplate(made), target: { machines: 0, percent: 100 } },
    ...{ halted: false, rollback: false, maxUnavailable: '33%', failureThreshold: '2%' },
    ...{ revision: sequence, sequence, issuedAt: sequence },
    ...more,
  }
}

let issued = 0
/** The hub says this to the region: the goal, and an index that names it. */
async function say(fleets: Replica[], payload: GoalPayload): Promise<void> {
  for (const { fleet } of fleets) await fleet.put(payload, signGoal(payload, hubKey))
  await sayIndex(fleets, payload)
}
async function sayIndex(fleets: Replica[], payload: GoalPayload): Promise<void> {
  const { revision, sequence } = payload
  const index = { region, issuedAt: ++issued, goals: { 'demo/web': { revision, sequence } } }
  for (const { fleet } of fleets) await fleet.putIndex(index, signIndex(index, hubKey))
}

const report = ({ sequence, revision, templateHash }: GoalPayload, more: Partial<GoalReport>): GoalReport => ({
  ...{ namespace: 'demo', name: 'web', sequence, revision, template: templateHash, state: 'Fetched' },
  ...more,
})
const old = 'f'.repeat(16)
const countsOf = async ({ fleet }: Replica) => (await fleet.counts())[0]?.counts

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
  const repeated = { region, issuedAt: issued, goals: { 'demo/web': { revision: 1, sequence: 1 } } }
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
  const empty = { region, issuedAt: ++issued, goals: {} }
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
  await holder.announce(replicas[0].url, { havePieces: 8, totalPieces: 8, originBytes: 10 })
  assert.equal((await pieces(rest, { havePieces: 1 })).flat(), [])
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
