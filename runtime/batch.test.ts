import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { Transient } from '../api/errors.ts'
import { Batch } from './batch.ts'

const test = suite('batch')

/** A batch whose runs are let go one by one. */
function held(fails: (items: number[]) => boolean = () => false) {
  const runs: { items: number[]; go: () => void }[] = []
  const batch = new Batch<number, number>(async (items) => {
    await new Promise<void>((go) => runs.push({ items, go }))
    if (fails(items)) throw new Error(`no ${items}`)
    return items.map((item) => item * 10)
  }, 3)
  const next = async () => {
    while (runs.length === 0) await Promise.resolve()
    const run = runs.shift()
    run?.go()
    return run?.items
  }
  return { batch, next }
}

test('the first call runs at once; what comes meanwhile runs together, as many as may', async () => {
  const { batch, next } = held()
  const calls = [1, 2, 3, 4, 5].map((n) => batch.call(n))
  assert.equal([await next(), await next(), await next()], [[1], [2, 3, 4], [5]])
  assert.equal(await Promise.all(calls), [10, 20, 30, 40, 50])
})

test('one that fails does not take the others with it', async () => {
  const { batch, next } = held((items) => items.includes(3))
  const calls = [1, 2, 3, 4].map((n) => batch.call(n).catch((error: Error) => error.message))
  for (let run = 0; run < 5; run++) await next()
  assert.equal(await Promise.all(calls), [10, 20, 'no 3', 40])
  const later = batch.call(9)
  await next()
  assert.is(await later, 90)
})

test('while nobody is there to answer none is tried alone', async () => {
  let runs = 0
  const batch = new Batch<number, number>(async () => {
    runs++
    throw new Transient('Unavailable', 'away')
  })
  const calls = [1, 2, 3].map((n) => batch.call(n).catch((error: Error) => error.message))
  assert.equal(await Promise.all(calls), ['away', 'away', 'away'])
  assert.is(runs, 2)
})

test.run()
