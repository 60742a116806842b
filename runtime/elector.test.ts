import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { startApiServer } from '../hack/parts/apiServer.ts'
import { FaultyProxy } from '../hack/parts/faultyProxy.ts'
import { until } from '../hack/parts/process.ts'
import { type Clock, systemClock } from './clock.ts'
import { Cluster } from './cluster.ts'
import { core } from './core.ts'
import { type ElectionOptions, runElected } from './elector.ts'
import { createLogger } from './log.ts'

const test = suite('elector')
const api = await startApiServer({ own: true })
await api.createNamespace('elections')
const admin = Cluster.load({ kubeconfig: api.kubeconfigFile })
const log = createLogger('test', 'silent')
const timings = { leaseMs: 600, renewDeadlineMs: 350, retryMs: 60 }
let elections = 0

/** The candidates of one election, each behind a proxy of its own; notes who leads when. */
function election() {
  const name = `election-${++elections}`
  const leading = new Set<string>()
  const history: string[] = []
  let most = 0
  const candidates: { dispose(): Promise<void> }[] = []
  return {
    name,
    leading,
    history,
    most: () => most,
    async join(identity: string, more: Partial<ElectionOptions> & { stopMs?: number } = {}) {
      const proxy = await FaultyProxy.start(api)
      const cluster = Cluster.load({ kubeconfig: proxy.kubeconfigFile })
      const stop = new AbortController()
      const lead = async (signal: AbortSignal) => {
        leading.add(identity)
        history.push(identity)
        most = Math.max(most, leading.size)
        await new Promise((resolve) => signal.addEventListener('abort', resolve, { once: true }))
        await systemClock.sleep(more.stopMs ?? 0)
        leading.delete(identity)
      }
      const options = { cluster, namespace: 'elections', name, identity, log, ...timings, ...more }
      const running = runElected(options, lead, stop.signal)
      const candidate = {
        proxy,
        stop: async () => {
          stop.abort()
          await running
        },
        async dispose() {
          await candidate.stop()
          await cluster[Symbol.asyncDispose]()
          await proxy[Symbol.asyncDispose]()
        },
      }
      candidates.push(candidate)
      return candidate
    },
    async [Symbol.asyncDispose]() {
      await Promise.all(candidates.map((candidate) => candidate.dispose()))
    },
  }
}

const leads = (leading: Set<string>, identity: string) =>
  until(`${identity} leads`, () => leading.has(identity), { timeoutMs: 15_000 })

test('one of two leads; when it stops it lets go, and the other leads at once', async () => {
  await using at = election()
  const a = await at.join('a')
  await leads(at.leading, 'a')
  await at.join('b', { leaseMs: 60_000 })
  await systemClock.sleep(500)
  assert.equal([...at.leading], ['a'])
  await a.stop()
  await leads(at.leading, 'b')
  assert.is(at.most(), 1)
  const lease = await admin.get<{ spec: { holderIdentity: string; leaseTransitions: number } }>(
    core.Lease,
    'elections',
    at.name,
  )
  assert.is(lease?.spec.holderIdentity, 'b')
  assert.ok(Number(lease?.spec.leaseTransitions) >= 1)
})

test('a leader cut off from the API server stops before another begins', async () => {
  await using at = election()
  const a = await at.join('a')
  await leads(at.leading, 'a')
  await at.join('b')
  a.proxy.refuse = () => ({ status: 503 })
  await leads(at.leading, 'b')
  assert.is(at.most(), 1)
  a.proxy.refuse = () => undefined
  await systemClock.sleep(300)
  assert.equal(at.history, ['a', 'b'])
})

test('a leader whose requests hang stops in time too', async () => {
  await using at = election()
  const a = await at.join('a')
  await leads(at.leading, 'a')
  await at.join('b')
  a.proxy.hang = true
  await leads(at.leading, 'b')
  assert.is(at.most(), 1)
  a.proxy.hang = false
})

test('while a leader takes its time to stop, its lease is kept', async () => {
  await using at = election()
  // Long enough that a busy machine does not lose it by itself.
  const unhurried = { leaseMs: 2500, renewDeadlineMs: 2000 }
  const a = await at.join('a', { ...unhurried, stopMs: 4000 })
  await leads(at.leading, 'a')
  await at.join('b', unhurried)
  await a.stop()
  await leads(at.leading, 'b')
  assert.is(at.most(), 1)
})

test('a leader that was frozen past its lease stops before it does anything else by its clock', async () => {
  await using at = election()
  let frozenMs = 0
  // What a process sees that was stopped: its clock jumps, whatever it slept for.
  const clock: Clock = { ...systemClock, monotonic: () => systemClock.monotonic() + frozenMs }
  const a = await at.join('a', { clock })
  await leads(at.leading, 'a')
  a.proxy.refuse = () => ({ status: 503 })
  frozenMs = 10_000
  const from = systemClock.monotonic()
  await until('it stopped', () => !at.leading.has('a'))
  assert.ok(systemClock.monotonic() - from < timings.retryMs + 150)
})

test('a wall clock that is wrong by days makes nobody lead too early', async () => {
  await using at = election()
  await at.join('a', { clock: { ...systemClock, now: () => Date.now() - 5 * 24 * 3_600_000 } })
  await leads(at.leading, 'a')
  await at.join('b', { clock: { ...systemClock, now: () => Date.now() + 5 * 24 * 3_600_000 } })
  await systemClock.sleep(1500)
  assert.equal([...at.leading], ['a'])
})

test('a holder that said a longer time is given that time', async () => {
  await using at = election()
  await admin.create(core.Lease, {
    metadata: { namespace: 'elections', name: at.name },
    spec: { holderIdentity: 'gone', leaseDurationSeconds: 2, renewTime: '2020-01-01T00:00:00.000000Z' },
  })
  const from = systemClock.monotonic()
  await at.join('b')
  await leads(at.leading, 'b')
  assert.ok(systemClock.monotonic() - from >= 2000)
})

test('leading that fails is begun again', async () => {
  await using proxy = await FaultyProxy.start(api)
  await using cluster = Cluster.load({ kubeconfig: proxy.kubeconfigFile })
  const stop = new AbortController()
  let times = 0
  const lead = async () => {
    if (++times < 3) throw new Error('a bug')
    stop.abort()
  }
  const name = `election-${++elections}`
  await runElected({ cluster, namespace: 'elections', name, identity: 'a', log, ...timings }, lead, stop.signal)
  assert.is(times, 3)
})

test('who is stopped while it acquires the lease does not lead, and lets go of it', async () => {
  await using at = election()
  const stop = new AbortController()
  await using proxy = await FaultyProxy.start(api)
  await using cluster = Cluster.load({ kubeconfig: proxy.kubeconfigFile })
  proxy.refuse = (line) => {
    if (line.startsWith('POST')) stop.abort()
    return undefined
  }
  let led = false
  const lead = async () => {
    led = true
  }
  await runElected(
    { cluster, namespace: 'elections', name: at.name, identity: 'a', log, ...timings },
    lead,
    stop.signal,
  )
  assert.equal([led, proxy.count('POST')], [false, 1])
  const lease = await admin.get<{ spec: { holderIdentity: string } }>(core.Lease, 'elections', at.name)
  assert.is(lease?.spec.holderIdentity, '')
})

test('of ten that come and go and are cut off, never two lead', async () => {
  await using at = election()
  const joined = await Promise.all(Array.from({ length: 10 }, (_, i) => at.join(`c${i}`)))
  for (let round = 0; round < 4; round++) {
    const identity = await until('someone leads', () => [...at.leading][0], { timeoutMs: 15_000 })
    const leader = joined[Number(identity.slice(1))]
    if (!leader) throw new Error('nobody')
    leader.proxy.refuse = () => ({ status: 500 })
    await until('it stopped', () => !at.leading.has(identity), { timeoutMs: 15_000 })
    leader.proxy.refuse = () => undefined
  }
  assert.is(at.most(), 1)
  assert.ok(at.history.length >= 4)
})

test.after(async () => {
  await admin[Symbol.asyncDispose]()
  await api[Symbol.asyncDispose]()
})

test.run()
