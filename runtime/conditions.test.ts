import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { setCondition, standingConditions } from './conditions.ts'

const test = suite('conditions')
const at = Date.UTC(2026, 0, 1)
const brief = (list: ReturnType<typeof setCondition>) => list.map(({ type, status, reason }) => [type, status, reason])

test('the transition time moves with the status and with nothing else', () => {
  const one = setCondition([], { type: 'Ready', status: 'False', reason: 'A', message: 'a' }, at)
  const two = setCondition(one, { type: 'Ready', status: 'False', reason: 'B', message: 'b' }, at + 1000)
  const three = setCondition(two, { type: 'Ready', status: 'True', reason: 'C', message: 'c' }, at + 2000)
  assert.equal(
    [one, two, three].map(([ready]) => ready?.lastTransitionTime),
    ['2026-01-01T00:00:00.000Z', '2026-01-01T00:00:00.000Z', '2026-01-01T00:00:02.000Z'],
  )
  assert.is(two[0]?.reason, 'B')
})

test('Reconciling and Stalled are there only while they are true', () => {
  const going = standingConditions([], { is: 'Reconciling', reason: 'Copying', message: '' }, 1, at)
  assert.equal(brief(going), [
    ['Ready', 'False', 'Copying'],
    ['Reconciling', 'True', 'Copying'],
  ])
  const stalled = standingConditions(going, { is: 'Stalled', reason: 'Invalid', message: '' }, 1, at)
  assert.equal(brief(stalled), [
    ['Ready', 'False', 'Invalid'],
    ['Stalled', 'True', 'Invalid'],
  ])
  const ready = standingConditions(stalled, { is: 'Ready', reason: 'Done', message: '' }, 2, at)
  assert.equal(brief(ready), [['Ready', 'True', 'Done']])
  assert.is(ready[0]?.observedGeneration, 2)
})

test('other conditions stay, and the order does not depend on that of setting', () => {
  const a = setCondition([], { type: 'Succeeded', status: 'True', reason: 'X', message: '' }, at)
  const list = standingConditions(a, { is: 'Reconciling', reason: 'Y', message: '' }, undefined, at)
  assert.equal(brief(list), [
    ['Ready', 'False', 'Y'],
    ['Reconciling', 'True', 'Y'],
    ['Succeeded', 'True', 'X'],
  ])
})

test.run()
