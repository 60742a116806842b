import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { type Known, tally } from './tally.ts'

const test = suite('tally')

const waiting: Known = {
  ...{ machines: 10, state: 'Fetched', runs: false, ofTemplate: true, ofRevision: true, granted: 'None' },
  ...{ grantOfTemplate: false, grantOfRevision: false, heard: 'Heard' },
}
const well: Known = { ...waiting, state: 'Healthy', runs: true }
const granted: Known = { ...waiting, machines: 1, grantOfTemplate: true, grantOfRevision: true, granted: 'Open' }
const of = (known: Known[], trusted = false) => tally(known, { trusted })

test('what machines say is counted', () => {
  const { desired, fetched, updated, healthy, failed, unreachable } = of([
    ...[waiting, well, { ...waiting, machines: 2, state: 'Fetching' as const }],
    { ...waiting, machines: 1, state: 'RolledBack' },
  ])
  assert.equal(
    { desired, fetched, updated, healthy, failed, unreachable },
    { desired: 23, fetched: 21, updated: 10, healthy: 10, failed: 1, unreachable: 0 },
  )
})

test('who may be down holds budget; the dead hold up neither those that go back nor the next release', () => {
  const budget = (more: Partial<Known>, trusted: boolean) => of([well, { ...granted, ...more }], trusted).unavailable
  const silent = { heard: 'Silent' } as const
  for (const trusted of [false, true]) {
    assert.is(budget({}, trusted), 1)
    assert.is(budget(silent, trusted), 1, 'its grant is open')
    assert.is(budget({ granted: 'Unresolved' }, trusted), 1)
    assert.is(budget({ granted: 'None', state: 'Activating' }, trusted), 1)
    assert.is(budget({ ...silent, granted: 'Unresolved' }, trusted), trusted ? 0 : 1)
    assert.is(budget({ ...silent, granted: 'None', state: 'Failed' }, trusted), trusted ? 0 : 1)
    assert.is(budget({ ...silent, granted: 'None', state: 'Activating', ofRevision: false }, trusted), 0)
    assert.is(budget({ ...silent, granted: 'Unresolved', grantOfRevision: false }, trusted), 0)
    assert.is(budget({ ...silent, grantOfRevision: false }, trusted), 1)
    assert.is(budget({ granted: 'None', heard: 'NotYet' }, trusted), 1, 'it may be doing anything')
  }
})

test('who falls silent as often as those that did not change costs no budget', () => {
  const lost: Known = { ...granted, granted: 'Unresolved', heard: 'Silent' }
  const dead: Known = { ...waiting, machines: 1, heard: 'Silent' }
  const all = [
    { ...well, machines: 5 },
    { ...waiting, machines: 5 },
  ]
  assert.equal([of([...all, lost]).failed, of([...all, lost]).unavailable], [1, 1])
  assert.equal([of([...all, lost, dead]).failed, of([...all, lost, dead]).unavailable], [0, 0])
})

test('who may run the template counts as if it did', () => {
  const moved = (more: Partial<Known>) => of([well, { ...granted, ...more }]).updatedOrGranted
  assert.is(moved({}), 11)
  assert.is(moved({ granted: 'Unresolved', grantOfRevision: false }), 11, 'by an earlier revision, too')
  assert.is(moved({ heard: 'Silent' }), 11, 'its grant is open')
  assert.is(moved({ granted: 'Unresolved', heard: 'Silent' }), 10, 'others take the place of the dead')
  assert.is(moved({ granted: 'None', runs: true, heard: 'Silent' }), 10)
  assert.is(moved({ grantOfTemplate: false }), 10)
  assert.is(moved({ granted: 'None', heard: 'NotYet' }), 11)
})

test('silent before its grant is unreachable, after it has failed, and while the grant is open neither', () => {
  const judged = (more: Partial<Known>, trusted = false) => {
    const { failed, unreachable } = of([{ ...waiting, machines: 100 }, well, { ...granted, ...more }], trusted)
    return [failed, unreachable]
  }
  const silent = { heard: 'Silent' } as const
  assert.equal(judged({ ...silent, granted: 'None' }), [0, 1])
  assert.equal(judged(silent), [0, 0])
  assert.equal(judged({ ...silent, granted: 'Unresolved' }), [1, 0])
  assert.equal(judged({ ...silent, runs: true, state: 'Healthy', granted: 'None' }), [1, 0])
  assert.equal(judged({ ...silent, granted: 'Unresolved' }, true), [0, 1])
  assert.is(of([well, { ...well, heard: 'LatelySilent' }]).manySilent, true)
  assert.is(of([well, { ...well, heard: 'LatelySilent' }], true).manySilent, false)
})

test.run()
