import { readdir, readFile, readlink, stat } from 'node:fs/promises'
import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { until } from '../hack/parts/process.ts'
import { assertRelease, Playground, sampleArtifact, within } from './fixture.ts'

const test = suite('swarm')

const tree = {
  'a/empty': 0,
  'a/one': 1,
  'bin/server': 13_000_001,
  current: 'bin/server',
  'data/big': 25_000_003,
  'data/small': 777,
  'lib/deep/x/y': 2_000_000,
  'lib/root': '',
  zero: 0,
}

test('three machines fetch from one seed; what each has on disk is the artifact', async () => {
  await using playground = await Playground.create()
  const sample = sampleArtifact(tree, 256 << 10)
  const key = Buffer.from('the key of this artifact')
  // every uplink the same, so that the seed is not simply the fastest
  const uploadBytesPerSecond = 30e6
  const seed = await playground.seed(sample, { key, uploadBytesPerSecond })
  const nodes = await Promise.all([1, 2, 3].map(() => playground.node(uploadBytesPerSecond)))
  const swarms = await Promise.all(nodes.map((node, i) => playground.open(node, sample, { key, name: `leech-${i}` })))
  const addresses = [seed.address, ...nodes.map((node) => ({ host: '127.0.0.1', port: node.port }))]
  for (const swarm of swarms) swarm.addPeers(addresses)
  await within(Promise.all(swarms.map((swarm) => swarm.done)), 'all have it')
  for (const i of [0, 1, 2]) {
    const dir = join(playground.dir, `leech-${i}`, 'release')
    await assertRelease(dir, sample)
    assert.is((await stat(join(dir, 'bin/server'))).mode & 0o777, 0o555)
    assert.is((await stat(join(dir, 'data/big'))).mode & 0o777, 0o444)
  }
  const copies = seed.swarm.stats().uploadedBytes / sample.descriptor.sizeBytes
  const wasted = swarms.reduce((sum, swarm) => sum + swarm.stats().wastedBytes, 0) / sample.descriptor.sizeBytes
  console.log(`seed sent ${copies.toFixed(2)} copies, ${wasted.toFixed(3)} copies wasted`)
  assert.ok(copies < 1.7, `the seed sent ${copies} copies`)
  for (const swarm of swarms)
    assert.equal(swarm.have(), { pieces: 153, total: 153, bytes: sample.descriptor.sizeBytes })
})

test('those who have all part: complete machines hold no connection to each other', async () => {
  await using playground = await Playground.create()
  const sample = sampleArtifact({ f: 3_000_000 }, 64 << 10)
  const seed = await playground.seed(sample)
  const leech = await playground.open(await playground.node(), sample)
  leech.addPeers([seed.address])
  await within(leech.done, 'done')
  await until('they part', () => seed.swarm.stats().peers === 0 && leech.stats().peers === 0)
})

test('a download limit holds, for all artifacts of a machine together', async () => {
  await using playground = await Playground.create()
  const samples = [1, 2].map(() => sampleArtifact({ f: 2_000_000 }, 64 << 10))
  const node = await playground.node(undefined, 2e6)
  const beganMs = performance.now()
  await Promise.all(
    samples.map(async (sample) => {
      const seed = await playground.seed(sample)
      const leech = await playground.open(node, sample)
      leech.addPeers([seed.address])
      await within(leech.done, 'done')
    }),
  )
  const bytesPerSecond = 4_000_000 / ((performance.now() - beganMs) / 1000)
  assert.ok(bytesPerSecond < 2.7e6, `${bytesPerSecond} bytes a second`)
})

test('a program that is being seeded can be started: nobody has it open for writing', async () => {
  await using playground = await Playground.create()
  const sample = sampleArtifact({ 'bin/server': 3_000_000 }, 64 << 10)
  const seed = await playground.seed(sample)
  const leech = await playground.open(await playground.node(), sample, { name: 'leech' })
  leech.addPeers([seed.address])
  await within(leech.done, 'done')
  const inRelease = join(playground.dir, 'leech', 'release')
  for (const fd of await readdir('/proc/self/fd')) {
    const target = await readlink(`/proc/self/fd/${fd}`).catch(() => '')
    if (!target.startsWith(inRelease)) continue
    const flags = /flags:\s+(\d+)/.exec(await readFile(`/proc/self/fdinfo/${fd}`, 'utf8'))?.[1] ?? ''
    assert.is(Number.parseInt(flags, 8) & 3, 0, `${target} is open for writing`)
  }
})

test.run()
