import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { GoalState } from './goalState.ts'
import { durationMs, resolveCount } from './meta.ts'
import { Pipeline } from './pipeline.ts'

const test = suite('the kinds')

test('a duration adds its parts', () => {
  assert.is(durationMs('1h30m'), 5_400_000)
  assert.is(durationMs('500ms'), 500)
  assert.is(durationMs('2m0s'), 120_000)
})

test('a share is rounded up, so that a region of one machine still has a budget', () => {
  assert.is(resolveCount('33%', 1), 1)
  assert.is(resolveCount('33%', 100), 33)
  assert.is(resolveCount('34%', 10), 4)
  assert.is(resolveCount(5, 1), 5)
  assert.is(resolveCount('0%', 10), 0)
})

test('a Pipeline with only what must be said gets its defaults', () => {
  const pipeline = Pipeline.parse({
    metadata: { name: 'web' },
    spec: { source: { url: 'https://git.example.com/web.git' }, build: { command: ['make'], output: 'out' } },
  })
  assert.equal(pipeline.spec.source.branches, ['main'])
  assert.equal(pipeline.spec.concurrency, { max: 4, onPush: 'Queue' })
  assert.equal(pipeline.spec.regions, ['*'])
  assert.is(pipeline.spec.build.timeout, '30m')
})

test('a GoalState without a rollout has its budgets all the same, and the waves of its regions', () => {
  const goal = GoalState.parse({
    metadata: { name: 'web' },
    spec: { artifactRef: { name: 'web-1a2b3c4d5e6f' }, activation: { command: ['./server'] } },
  })
  assert.is(goal.spec.rollout.waves, undefined)
  assert.is(goal.spec.rollout.maxUnavailable, '33%')
  assert.is(goal.spec.activation.stop.signal, 'SIGTERM')
})

test('what does not fit is refused', () => {
  assert.throws(() => Pipeline.parse({ metadata: { name: 'web' }, spec: {} }))
  assert.throws(() =>
    GoalState.parse({ metadata: { name: 'web' }, spec: { artifactRef: { name: 'a' }, activation: { command: [] } } }),
  )
})

test.run()
