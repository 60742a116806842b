import fc from 'fast-check'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { FakeClock } from './clock.fake.ts'
import { WorkQueue } from './workQueue.ts'

const test = suite('work queue')
const never = new AbortController().signal

/** The next key, or undefined when none waits. */
async function takeNow(queue: WorkQueue): Promise<string | undefined> {
  return queue.depth > 0 ? queue.take(never) : undefined
}

test('a key that waits is handed out once, in the order of adding', async () => {
  const queue = new WorkQueue()
  for (const key of ['a', 'b', 'a', 'c', 'b']) queue.add(key)
  assert.is(queue.depth, 3)
  assert.equal([await queue.take(never), await queue.take(never), await queue.take(never)], ['a', 'b', 'c'])
})

test('a key added while in work is handed out once more when it is done', async () => {
  const queue = new WorkQueue()
  queue.add('a')
  await queue.take(never)
  queue.add('a')
  queue.add('a')
  assert.is(queue.depth, 0)
  queue.done('a')
  assert.is(await takeNow(queue), 'a')
  queue.done('a')
  assert.is(await takeNow(queue), undefined)
})

test('whatever is added, and in whatever order it is done, no key is lost nor in work twice', async () => {
  const step = fc.record({
    what: fc.constantFrom('add', 'later', 'take', 'done', 'retry', 'wait'),
    key: fc.constantFrom('a', 'b', 'c'),
  })
  await fc.assert(
    fc.asyncProperty(fc.array(step, { maxLength: 60 }), async (steps) => {
      const clock = new FakeClock()
      const queue = new WorkQueue({ clock, random: () => 1 })
      const inWork = new Set<string>()
      /** Added and not taken since. */
      const owed = new Set<string>()
      const added = { a: 0, b: 0, c: 0 } as Record<string, number>
      const taken = { a: 0, b: 0, c: 0 } as Record<string, number>
      const take = async () => {
        const key = await takeNow(queue)
        if (key === undefined) return
        assert.not.ok(inWork.has(key), 'handed out twice at once')
        owed.delete(key)
        taken[key] = (taken[key] ?? 0) + 1
        assert.ok(Number(taken[key]) <= Number(added[key]), 'handed out more often than added')
        inWork.add(key)
      }
      for (const { what, key } of steps) {
        if (what === 'take') await take()
        else if (what === 'done' && inWork.delete(key)) queue.done(key)
        else if (what === 'wait') await clock.advance(200)
        else if (what === 'add') queue.add(key)
        else if (what === 'later') queue.addAfter(key, 100)
        else if (what === 'retry') queue.retry(key)
        if (what === 'add' || what === 'later' || what === 'retry') {
          owed.add(key)
          added[key] = (added[key] ?? 0) + 1
        }
      }
      for (let round = 0; round < 3; round++) {
        await clock.advance(120_000)
        for (const key of [...inWork]) {
          inWork.delete(key)
          queue.done(key)
        }
        while (queue.depth > 0) await take()
      }
      assert.is(owed.size, 0, `never handed out: ${[...owed]}`)
      assert.is(clock.sleeping, 0, 'a timer is left')
    }),
    { numRuns: 200 },
  )
})

test('of two delays the earlier counts, and adding ends both', async () => {
  const clock = new FakeClock()
  const queue = new WorkQueue({ clock })
  queue.addAfter('a', 1000)
  queue.addAfter('a', 100)
  queue.addAfter('a', 500)
  await clock.advance(99)
  assert.is(queue.depth, 0)
  await clock.advance(1)
  assert.is(await takeNow(queue), 'a')
  queue.done('a')
  await clock.advance(10_000)
  assert.is(queue.depth, 0)
  queue.addAfter('a', 100)
  queue.add('a')
  assert.is(clock.sleeping, 0)
})

test('retries wait longer each time, up to a bound, and start over after a success', async () => {
  const clock = new FakeClock()
  const queue = new WorkQueue({ clock, baseDelayMs: 100, maxDelayMs: 1000, random: () => 1 })
  const delays: number[] = []
  const retried = async () => {
    queue.retry('a')
    const from = clock.monotonic()
    while (queue.depth === 0) await clock.advance(50)
    delays.push(clock.monotonic() - from)
    await queue.take(never)
    queue.done('a')
  }
  for (let i = 0; i < 6; i++) await retried()
  queue.forget('a')
  await retried()
  assert.equal(delays, [100, 200, 400, 800, 1000, 1000, 100])
})

test('a taker that waits gets the next key; an aborted one gets none and takes none away', async () => {
  const queue = new WorkQueue()
  const stop = new AbortController()
  const first = queue.take(stop.signal)
  const second = queue.take(never)
  queue.add('a')
  stop.abort()
  assert.is(await first, undefined)
  assert.is(await second, 'a')
})

test('expediting lets every delayed key wait now, with no timer left', async () => {
  const clock = new FakeClock()
  const queue = new WorkQueue({ clock })
  queue.addAfter('a', 1000)
  queue.addAfter('b', 2000)
  queue.expedite()
  await clock.advance(0)
  assert.is(clock.sleeping, 0)
  assert.equal([await takeNow(queue), await takeNow(queue)], ['a', 'b'])
})

test.run()
