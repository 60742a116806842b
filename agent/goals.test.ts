import { mkdir } from 'node:fs/promises'
import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { temporaryDir } from '../hack/parts/process.ts'
import { type GoalPayload, signGoal, signIndex } from '../rollout/envelope.ts'
import { generateSigningKey, loadSigningKey, type SigningKey } from '../runtime/dsse.ts'
import { createLogger } from '../runtime/log.ts'
import { GoalBook } from './goals.ts'
import { AgentState } from './state.ts'

const test = suite('goals')
const hub = loadSigningKey(generateSigningKey().privateKeyPem)
const digest = `sha256:${'0'.repeat(64)}`

function goal(sequence: number, o: Partial<GoalPayload> = {}): GoalPayload {
  const artifact = { name: 'web-1', digest, sizeBytes: 1, key: 'k', infoHash: '0'.repeat(40), descriptorDigest: digest }
  const health = {}
  const stop = { signal: 'SIGTERM', timeout: '1s' }
  const activation = {
    type: 'Process' as const,
    command: ['x'],
    env: [],
    stop,
    health,
    minHealthy: '1s',
    deadline: '1s',
  }
  return {
    region: 'eu',
    namespace: 'team',
    name: 'web',
    uid: 'u',
    place: 'web',
    selector: { matchLabels: { app: 'web' } },
    template: { artifact, activation },
    templateHash: 'h',
    target: { machines: 0, percent: 0 },
    halted: false,
    rollback: false,
    maxUnavailable: 1,
    failureThreshold: 1,
    revision: 1,
    sequence,
    issuedAt: 1,
    ...o,
  }
}

const sign = (payload: GoalPayload, key: SigningKey = hub) => signGoal(payload, key)

function index(issuedAt: number, goals: GoalPayload[], region = 'eu') {
  const named = goals.map(({ namespace, name, revision, sequence }) => [`${namespace}/${name}`, { revision, sequence }])
  return signIndex({ region, issuedAt, goals: Object.fromEntries(named) }, hub)
}

async function open(dataDir: string): Promise<GoalBook> {
  await mkdir(dataDir, { recursive: true })
  const membership = {
    region: 'eu',
    namespaces: ['team'],
    labels: { app: 'web' },
    env: {},
    fleetUrls: [],
    fleetCa: '',
    hubKeys: [],
    verificationKeys: [hub],
  }
  const state = await AgentState.open(dataDir)
  return GoalBook.open({ membership, state, log: createLogger('test', 'silent'), onRefused: () => {} })
}

async function book() {
  const dir = await temporaryDir('shoal-goals-')
  return { dataDir: dir.path, goals: await open(dir.path), [Symbol.asyncDispose]: () => dir[Symbol.asyncDispose]() }
}

const sequences = (goals: GoalBook) => goals.accepted.map(({ name, sequence }) => `${name}:${sequence}`)
const reasons = (goals: GoalBook) => goals.refusals.map(({ reason }) => reason)

test('what the hub did not sign changes nothing', async () => {
  await using b = await book()
  await b.goals.take(index(1, [goal(5)]), [sign(goal(5))])
  const stranger = loadSigningKey(generateSigningKey().privateKeyPem)
  await b.goals.take(undefined, [sign(goal(6), stranger)])
  assert.equal([sequences(b.goals), reasons(b.goals)], [['web:5'], ['SignatureInvalid']])
  const tampered = JSON.parse(sign(goal(6))) as { payload: string }
  tampered.payload = Buffer.from(JSON.stringify(goal(7))).toString('base64')
  await b.goals.take(undefined, [JSON.stringify(tampered), 'no envelope'])
  assert.equal([sequences(b.goals), reasons(b.goals)], [['web:5'], ['SignatureInvalid', 'SignatureInvalid']])
})

test('goals of another region, tenant or selector are refused', async () => {
  await using b = await book()
  const foreign = [
    goal(1, { region: 'us' }),
    goal(1, { namespace: 'others', name: 'a' }),
    goal(1, { name: 'b', selector: { matchLabels: { app: 'db' } } }),
  ]
  await b.goals.take(
    index(1, foreign),
    foreign.map((payload) => sign(payload)),
  )
  assert.equal([sequences(b.goals), reasons(b.goals)], [[], ['Forbidden', 'Forbidden', 'Forbidden']])
})

test('a lower sequence is refused, after a restart too, and the same sequence means the same goal', async () => {
  await using b = await book()
  await b.goals.take(index(1, [goal(5)]), [sign(goal(5))])
  await b.goals.take(undefined, [sign(goal(4))])
  assert.equal([sequences(b.goals), reasons(b.goals)], [['web:5'], ['Conflict']])
  const again = await open(b.dataDir)
  assert.equal(sequences(again), ['web:5'])
  await again.take(undefined, [sign(goal(4))])
  assert.equal([sequences(again), reasons(again)], [['web:5'], ['Conflict']])
  await again.take(undefined, [sign(goal(5, { templateHash: 'other' }))])
  assert.equal([again.accepted[0]?.templateHash, reasons(again)], ['h', ['Conflict']])
  await again.take(undefined, [sign(goal(6))])
  assert.equal([sequences(again), reasons(again)], [['web:6'], []])
})

test('an agent without memory accepts only what the current index names', async () => {
  await using b = await book()
  await b.goals.take(undefined, [sign(goal(5))])
  assert.equal([sequences(b.goals), reasons(b.goals)], [[], ['Unavailable']])
  await b.goals.take(index(1, [goal(6)]), [sign(goal(5))])
  assert.equal(sequences(b.goals), [], 'an old goal, replayed')
  await b.goals.take(index(2, [goal(6)], 'us'), [sign(goal(6))])
  assert.equal(sequences(b.goals), ['web:6'], 'another region’s index is ignored, ours stays')
  const other = goal(3, { name: 'api', place: 'api' })
  await b.goals.take(index(10, []), [])
  await b.goals.take(index(9, [other]), [sign(other)])
  assert.equal(sequences(b.goals), ['web:6'], 'an index older than one seen names nothing')
})

test('silence removes nothing', async () => {
  await using b = await book()
  await b.goals.take(index(1, [goal(5)]), [sign(goal(5))])
  await b.goals.take(index(2, []), [])
  assert.equal(sequences(b.goals), ['web:5'])
})

test('a place has one holder, until the index no longer names it', async () => {
  await using b = await book()
  const second = goal(9, { name: 'second' })
  await b.goals.take(index(1, [goal(5), second]), [sign(goal(5)), sign(second)])
  assert.equal([sequences(b.goals), reasons(b.goals)], [['web:5'], ['PlaceConflict']])
  await b.goals.take(index(2, [second]), [sign(second)])
  assert.equal([sequences(b.goals), reasons(b.goals)], [['second:9'], []])
  assert.equal(sequences(await open(b.dataDir)), ['second:9'])
  assert.is((await AgentState.open(join(b.dataDir))).memory.goals['team/web']?.sequence, 5, 'its sequence still counts')
})

test.run()
