import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { until } from '../hack/parts/process.ts'
import { Playground, sampleArtifact, within } from './fixture.ts'

const test = suite('priority')
const needed = sampleArtifact({ needed: 6 << 20 }, 64 << 10)
const spare = sampleArtifact({ spare: 6 << 20 }, 64 << 10)
const bytesPerSecond = 4e6

test('what is needed first has nearly everything before the rest begins', async () => {
  await using playground = await Playground.create()
  const [one, other] = [
    await playground.seed(needed, { uploadBytesPerSecond: bytesPerSecond }),
    await playground.seed(spare, { uploadBytesPerSecond: bytesPerSecond }),
  ]
  const node = await playground.node()
  const first = await playground.open(node, needed, { priority: 1 })
  first.addPeers([one.address])
  await until('the first has begun', () => first.have().pieces > 0)
  const second = await playground.open(node, spare)
  second.addPeers([other.address])
  await within(first.done, 'the first is done')
  assert.ok(second.have().pieces <= 8, `${second.have().pieces} pieces of the second`)
  await within(second.done, 'the second is done')
})

test('what nobody gives holds up nothing', async () => {
  await using playground = await Playground.create()
  const { address } = await playground.seed(spare)
  const node = await playground.node()
  const stuck = await playground.open(node, needed, { priority: 1 })
  const second = await playground.open(node, spare)
  second.addPeers([address])
  await within(second.done, 'the second is done')
  assert.is(stuck.have().pieces, 0)
})

test.run()
