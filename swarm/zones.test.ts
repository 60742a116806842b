import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { until } from '../hack/parts/process.ts'
import { Playground, sampleArtifact, within } from './fixture.ts'

const test = suite('zones')
const sample = sampleArtifact({ a: 8 << 20 }, 64 << 10)
const key = Buffer.alloc(32, 7)

/** Two that have everything without being seeds from the start: one in `here`, which gives slowly, and one in `there`. */
async function crowd(playground: Playground) {
  const seed = await playground.seed(sample, { key })
  const member = async (zone: string, uploadBytesPerSecond?: number) => {
    const node = await playground.node(uploadBytesPerSecond)
    const swarm = await playground.open(node, sample, { key, zone })
    swarm.addPeers([seed.address])
    await within(swarm.done, `${zone} is done`)
    return { node, swarm, address: { host: '127.0.0.1', port: node.port } }
  }
  const near = await member('here', 8e6)
  const far = await member('there')
  await seed.node[Symbol.asyncDispose]()
  return { near, far }
}

test('what a near peer has is not taken from afar, though that were faster', async () => {
  await using playground = await Playground.create()
  const { near, far } = await crowd(playground)
  const leech = await playground.open(await playground.node(), sample, { key, zone: 'here' })
  leech.addPeers([near.address])
  await until('the near one is connected', () => leech.stats().peers === 1)
  leech.addPeers([far.address])
  await within(leech.done, 'done')
  assert.ok(far.swarm.stats().uploadedBytes <= 4 * (64 << 10), `${far.swarm.stats().uploadedBytes} from afar`)
})

test('when the near one is gone the rest comes from afar', async () => {
  await using playground = await Playground.create()
  const { near, far } = await crowd(playground)
  const leech = await playground.open(await playground.node(), sample, { key, zone: 'here' })
  leech.addPeers([near.address, far.address])
  await until('some of it', () => leech.have().pieces > 10)
  await near.node[Symbol.asyncDispose]()
  await within(leech.done, 'done')
})

test.run()
