import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { freezeProblem, frozenUntil } from './freeze.ts'

const test = suite('freeze')
const at = (text: string) => Date.parse(text)
const weekend = { cron: '0 17 * * 5', duration: '64h', timeZone: 'Europe/Paris' }

test('a freeze holds from its time on, for its duration, in its own time zone', () => {
  // Friday, 5 p.m. in Paris is 16:00 UTC in winter
  assert.is(frozenUntil([weekend], at('2026-11-27T15:59:59Z')), undefined)
  const endMs = at('2026-11-30T08:00:00Z')
  assert.is(frozenUntil([weekend], at('2026-11-27T16:00:00Z')), endMs)
  assert.is(frozenUntil([weekend], endMs - 1), endMs)
  assert.is(frozenUntil([weekend], endMs), undefined)
  // and 15:00 UTC in summer
  assert.is(frozenUntil([weekend], at('2026-07-03T15:00:00Z')), at('2026-07-06T07:00:00Z'))
})

test('of several the one that ends last counts; without any nothing is frozen', () => {
  const night = { cron: '0 20 * * *', duration: '10h', timeZone: 'UTC' }
  assert.is(frozenUntil([night, weekend], at('2026-11-27T21:00:00Z')), at('2026-11-30T08:00:00Z'))
  assert.is(frozenUntil([night, weekend], at('2026-11-26T21:00:00Z')), at('2026-11-27T06:00:00Z'))
  assert.is(frozenUntil([], at('2026-11-27T21:00:00Z')), undefined)
})

test('one that begins again before it ends goes on', () => {
  const always = { cron: '0 * * * *', duration: '90m', timeZone: 'UTC' }
  assert.is(frozenUntil([always], at('2026-11-27T21:10:00Z')), at('2026-11-27T22:30:00Z'))
})

test('one that cannot be read says why', () => {
  assert.is(freezeProblem(weekend), undefined)
  assert.match(freezeProblem({ ...weekend, cron: '0 17 * * 9' }) ?? '', /0 17 \* \* 9/)
  assert.match(freezeProblem({ ...weekend, timeZone: 'Mars/Olympus' }) ?? '', /Mars/)
})

test('one that begins anew while it holds does not end in the second before', () => {
  const daily = { cron: '0 17 * * *', duration: '25h', timeZone: 'UTC' }
  for (const second of ['16:59:58.900', '16:59:59.000', '16:59:59.500', '16:59:59.999', '17:00:00.000']) {
    const end = frozenUntil([daily], Date.parse(`2026-03-10T${second}Z`))
    const began = second.startsWith('17') ? '10' : '09'
    assert.is(end, Date.parse(`2026-03-${began}T17:00:00Z`) + 25 * 3_600_000, second)
  }
})

test.run()
