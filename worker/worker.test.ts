import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { Fixture } from './fixture.ts'

const test = suite('worker')
const fixture = await Fixture.start()
const worker = fixture.startWorker('worker')
test.after(async () => {
  await worker.stop()
  await fixture[Symbol.asyncDispose]()
})

test('a commit is built and uploaded', async () => {
  const { name, commit } = await fixture.queue('echo hello; mkdir out; git rev-parse HEAD >out/a; id -u; env')
  const job = await fixture.reaches(name, ['Replicating', 'Failed'])
  console.log(await fixture.log(name))
  assert.is(job.phase, 'Replicating')
  const facts = JSON.parse(job.facts ?? '{}')
  assert.is((await fixture.store.readAll(facts.key, 1000)).toString(), `${commit}\n`)
})

test.run()
