import { randomInt } from 'node:crypto'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { openTargets } from './fuzz/targets.ts'

const test = suite('fuzz')

test('whatever strangers send is taken or refused as documented, and a download among them ends right', async () => {
  await using targets = await openTargets()
  for (const { name, runs, check } of targets.all) {
    const seed = randomInt(2 ** 31)
    assert.is(await check({ seed, runs }), undefined, `./hack/fuzz --target '${name}' --seed ${seed}`)
  }
})

test.run()
