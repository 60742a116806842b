import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { type ErrorCode, Fenced, Stalled, Transient, Waiting } from '../api/errors.ts'
import { FakeClock } from './clock.fake.ts'
import { Controller, type ReconcileResult } from './controller.ts'
import { createLogger } from './log.ts'
import { Metrics } from './metrics.ts'

const test = suite('controller')
const log = createLogger('test', 'silent')

function harness(reconcile: (key: string, attempt: number, signal: AbortSignal) => Promise<ReconcileResult>) {
  const clock = new FakeClock()
  const metrics = new Metrics()
  const calls: string[] = []
  const controller = new Controller({
    name: 'test',
    log,
    metrics,
    clock,
    reconcile: (key, signal) => {
      calls.push(key)
      return reconcile(key, calls.filter((called) => called === key).length, signal)
    },
  })
  const stop = new AbortController()
  return { clock, metrics, calls, controller, stop, run: () => controller.run(stop.signal) }
}

const failing = (make: () => Error) => async (_key: string, attempt: number) => {
  if (attempt === 1) throw make()
  return undefined
}

test('a stalled key is left alone until it is enqueued again', async () => {
  const { clock, calls, controller, stop, run } = harness(failing(() => new Stalled('Invalid', 'wrong')))
  const running = run()
  controller.enqueue('a')
  await clock.advance(24 * 3_600_000)
  assert.equal(calls, ['a'])
  controller.enqueue('a')
  await clock.advance(0)
  assert.equal(calls, ['a', 'a'])
  stop.abort()
  await running
})

test('a waiting key comes back after its time', async () => {
  const { clock, calls, controller, stop, run } = harness(
    failing(() => new Waiting('WaitingForArtifact', 'not yet', { afterMs: 5000 })),
  )
  const running = run()
  controller.enqueue('a')
  await clock.advance(4999)
  assert.is(calls.length, 1)
  await clock.advance(1)
  assert.is(calls.length, 2)
  stop.abort()
  await running
})

test('a key that was fenced is dropped', async () => {
  const { clock, calls, controller, stop, run } = harness(failing(() => new Fenced('someone else')))
  const running = run()
  controller.enqueue('a')
  await clock.advance(600_000)
  assert.is(calls.length, 1)
  stop.abort()
  await running
})

for (const error of [new Transient('Unavailable', 'away'), new Error('a bug')])
  test(`${error.message}: retried with growing delays, and counted under its code`, async () => {
    const { clock, calls, controller, stop, run, metrics } = harness(async (_key, attempt) => {
      if (attempt <= 5) throw error
      return undefined
    })
    const running = run()
    controller.enqueue('a')
    await clock.advance(10_000)
    assert.is(calls.length, 6)
    const code: ErrorCode = error instanceof Transient ? error.code : 'Internal'
    const text = await metrics.registry.metrics()
    assert.match(text, `shoal_reconcile_total{controller="test",result="${code}"} 5`)
    assert.match(text, 'shoal_reconcile_total{controller="test",result="Success"} 1')
    stop.abort()
    await running
  })

test('stopping lets reconciles in flight end, and running again loses no key', async () => {
  const gate = Promise.withResolvers<void>()
  const { clock, calls, controller, stop, run } = harness(async (key, attempt, signal) => {
    if (key === 'delayed') return { afterMs: 3_600_000 }
    if (attempt > 1) return undefined
    await gate.promise
    signal.throwIfAborted()
    return undefined
  })
  const running = run()
  controller.enqueue('interrupted')
  controller.enqueue('delayed')
  await clock.advance(0)
  let ended = false
  running.then(() => {
    ended = true
  })
  stop.abort()
  await clock.advance(0)
  assert.not.ok(ended, 'ended before its reconcile')
  gate.resolve()
  await running
  assert.is(clock.sleeping, 0)
  controller.enqueue('meanwhile')
  const again = new AbortController()
  const second = controller.run(again.signal)
  await clock.advance(0)
  assert.equal(calls.toSorted(), ['delayed', 'delayed', 'interrupted', 'interrupted', 'meanwhile'])
  again.abort()
  await second
})

test.run()
