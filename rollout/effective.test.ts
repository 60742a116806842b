import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { chooseTemplate } from './effective.ts'

const test = suite('which template is effective')

type Outcome = 'InProgress' | 'Succeeded' | 'Failed' | 'Superseded' | 'Undone'
interface World {
  wanted: string
  /** `template revision`, as it runs now. */
  now?: [template: string, revision: number]
  good?: string
  before?: string
  history?: [revision: number, template: string, outcome: Outcome][]
  held?: Record<string, { by: string; to?: number }>
  onFailure?: 'Rollback' | 'Pause'
}

function choose({ wanted, now, good, before, history = [], held = {}, onFailure = 'Rollback' }: World) {
  const ref = (template: string | undefined) => template && { template, revision: 0, artifact: '' }
  const at = '2026-01-01T00:00:00Z'
  const choice = chooseTemplate({
    wanted,
    status: {
      effective: now && { template: now[0], revision: now[1], artifact: '', since: at },
      lastGood: ref(good) || undefined,
      goodBefore: ref(before) || undefined,
      history: history.map(([revision, template, outcome]) => ({ revision, template, outcome, artifact: '', at })),
    },
    onFailure,
    holdOf: (template) => held[template],
    templateOf: (revision) => history.find(([number]) => number === revision)?.[1],
  })
  return choice && `${choice.rollback ? 'back to ' : ''}${choice.template}`
}
const byEngine = { by: 'shoal' }
const byPerson = { by: 'ada' }

test('what the spec says, once', () => {
  assert.is(choose({ wanted: 'a' }), 'a')
  assert.is(choose({ wanted: 'a', now: ['a', 1], history: [[1, 'a', 'InProgress']] }), undefined)
  assert.is(choose({ wanted: 'b', now: ['a', 1], good: 'a' }), 'b')
})

test('after one that failed, the last that worked; after two, that one still', () => {
  assert.is(choose({ wanted: 'b', now: ['b', 2], good: 'a', held: { b: byEngine } }), 'back to a')
  assert.is(choose({ wanted: 'c', now: ['c', 4], good: 'a', held: { b: byEngine, c: byEngine } }), 'back to a')
})

test('a first one that failed has nothing to go back to; with onFailure: Pause nobody goes back unless a person says so', () => {
  assert.is(choose({ wanted: 'a', now: ['a', 1], held: { a: byEngine } }), undefined)
  const failed: World = { wanted: 'b', now: ['b', 2], good: 'a', onFailure: 'Pause' }
  assert.is(choose({ ...failed, held: { b: byEngine } }), undefined)
  assert.is(choose({ ...failed, held: { b: byPerson } }), 'back to a')
})

test('undo of one that works goes to the one before it, or to the revision that is named', () => {
  const world: World = { wanted: 'c', now: ['c', 3], good: 'c', before: 'b', history: [[1, 'a', 'Succeeded']] }
  assert.is(choose({ ...world, held: { c: byPerson } }), 'back to b')
  assert.is(choose({ ...world, held: { c: { by: 'ada', to: 1 } } }), 'back to a')
  assert.is(choose({ ...world, held: { c: byPerson, b: byEngine } }), 'back to a', 'never to one that is held')
})

test('the same spec applied again does not redo what was undone; another one goes out', () => {
  const undone: World = { wanted: 'b', now: ['a', 3], good: 'a', before: 'b', held: { b: byPerson } }
  assert.is(choose(undone), undefined)
  assert.is(choose({ ...undone, wanted: 'c' }), 'c')
})

test('released, it goes out again: also where it failed and nothing was gone back to', () => {
  assert.is(choose({ wanted: 'b', now: ['a', 3], good: 'a' }), 'b')
  assert.is(choose({ wanted: 'a', now: ['a', 1], history: [[1, 'a', 'Failed']] }), 'a')
})

test.run()
