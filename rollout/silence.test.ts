import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { judgeSilence } from './silence.ts'

const test = suite('silence')

const judge = (changed: [number, number], unchanged: [number, number], lately = 0) =>
  judgeSilence({
    changed: { machines: changed[0], silent: changed[1] },
    unchanged: { machines: unchanged[0], silent: unchanged[1] },
    lately,
  })

test('a machine that fell silent after it changed has failed', () => {
  assert.equal(judge([1, 1], [7, 0], 1), { many: false, failed: 1 })
})

test('not where those that did not change fall silent at the same rate', () => {
  assert.equal(judge([100, 2], [900, 18]), { many: false, failed: 0 })
  assert.equal(judge([100, 10], [900, 18]), { many: false, failed: 8 })
})

test('once all have changed there is nobody to compare with', () => {
  assert.equal(judge([8, 1], [0, 0], 1), { many: false, failed: 1 })
})

test('more than one in twenty at once say nothing of the release', () => {
  assert.equal(judge([500, 60], [500, 0], 60), { many: true, failed: 0 })
  assert.equal(judge([500, 60], [500, 0], 50), { many: false, failed: 60 })
})

test('one machine is never many', () => {
  assert.is(judge([1, 1], [1, 0], 1).many, false)
  assert.is(judge([2, 2], [2, 0], 2).many, true)
})

test.run()
