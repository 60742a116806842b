import { spawn } from 'node:child_process'
import { mkdir, open, readFile, rm, stat, truncate, utimes, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { until } from '../hack/parts/process.ts'
import { systemClock } from './clock.ts'
import { assertRelease, Playground, sampleArtifact, within, writeRelease } from './fixture.ts'
import { SwarmNode } from './node.ts'
import { loadProgress } from './progress.ts'

const test = suite('resume')
const sample = sampleArtifact({ 'a/x': 4_000_001, 'bin/y': 6_000_000, z: 3_000_000 }, 128 << 10)
const { sizeBytes, pieceLengthBytes } = sample.descriptor

/** Fetches some pieces into folder `name`, then stops in good order. */
async function fetchSome(playground: Playground, name: string): Promise<number> {
  const seed = await playground.seed(sample, { uploadBytesPerSecond: 10e6 })
  await using node = await playground.node()
  const leech = await playground.open(node, sample, { name })
  leech.addPeers([seed.address])
  await until('some pieces are there', () => leech.have().pieces >= 20)
  await leech[Symbol.asyncDispose]()
  return leech.have().pieces
}

/** Fetches the rest; @returns what came from peers. */
async function fetchRest(playground: Playground, name: string): Promise<number> {
  const seed = await playground.seed(sample)
  const leech = await playground.open(await playground.node(), sample, { name })
  leech.addPeers([seed.address])
  await within(leech.done, 'done')
  await assertRelease(join(playground.dir, name, 'release'), sample)
  return leech.stats().downloadedFromPeersBytes
}

test('verified pieces are not fetched again after a stop', async () => {
  await using playground = await Playground.create()
  const had = await fetchSome(playground, 'm')
  const fetched = await fetchRest(playground, 'm')
  assert.ok(fetched <= sizeBytes - (had - 1) * pieceLengthBytes, `${fetched} bytes though ${had} pieces were there`)
})

test('with a damaged or missing state file, what is on disk is hashed and kept', async () => {
  for (const damage of ['missing', 'damaged']) {
    await using playground = await Playground.create()
    const had = await fetchSome(playground, 'm')
    const state = join(playground.dir, 'm', 'state')
    if (damage === 'missing') await rm(state)
    else {
      const bytes = await readFile(state)
      bytes[50] = (bytes[50] ?? 0) ^ 0xff
      await writeFile(state, bytes)
    }
    const fetched = await fetchRest(playground, 'm')
    assert.ok(
      fetched <= sizeBytes - (had - 1) * pieceLengthBytes,
      `${damage}: ${fetched} bytes though ${had} were there`,
    )
  }
})

test('a file changed while nobody looked is hashed, and only its bad pieces are fetched again', async () => {
  await using playground = await Playground.create()
  await fetchRest(playground, 'm')
  {
    const path = join(playground.dir, 'm', 'release', 'bin/y')
    await rm(path)
    await writeFile(path, sample.blob.subarray(4_000_001, 10_000_001))
    await using file = await open(path, 'r+')
    await file.write(Buffer.from('changed'), 0, 7, 3_000_000)
  }
  const fetched = await fetchRest(playground, 'm')
  assert.is(fetched, pieceLengthBytes)
})

test('a bit that rots unseen is found before it is sent, and fetched again', async () => {
  await using playground = await Playground.create()
  await fetchRest(playground, 'm')
  const path = join(playground.dir, 'm', 'release', 'bin/y')
  const before = await stat(path)
  {
    await using file = await open(path, 'r+').catch(async () => {
      throw new Error('tests run as a user that may write its own files')
    })
    await file.write(Buffer.from('rotten'), 0, 6, 1_000_000)
    await file.datasync()
  }
  // as if nothing had been written: only the bytes differ
  await utimes(path, before.atimeMs / 1000, before.mtimeMs / 1000)
  const node = await playground.node()
  const rotten = await playground.open(node, sample, { name: 'm' })
  const other = await playground.open(await playground.node(), sample)
  other.addPeers([{ host: '127.0.0.1', port: node.port }])
  await until('all but one piece', () => other.have().pieces >= other.have().total - 1)
  const seed = await playground.seed(sample)
  other.addPeers([seed.address])
  rotten.addPeers([seed.address])
  await within(other.done, 'done')
  await until('the rotten piece is fetched again', () => rotten.missing().length === 0)
  assert.equal(other.stats().banned, [])
  await rotten[Symbol.asyncDispose]()
  await assertRelease(join(playground.dir, 'm', 'release'), sample)
})

test('a process killed at any moment goes on where it was, and ends right', async () => {
  await using playground = await Playground.create()
  const seed = await playground.seed(sample, { uploadBytesPerSecond: 12e6 })
  const descriptorFile = join(playground.dir, 'x.torrent')
  await writeFile(descriptorFile, sample.torrent)
  await mkdir(join(playground.dir, 'm'))
  const program = `
    import { readFileSync } from 'node:fs'
    import { parseDescriptor } from ${JSON.stringify(new URL('../api/descriptor.ts', import.meta.url).href)}
    import { SwarmNode } from ${JSON.stringify(new URL('./node.ts', import.meta.url).href)}
    const log = { debug() {}, info() {}, error() {} }
    const node = await SwarmNode.listen({ host: '127.0.0.1', port: 0, log })
    const swarm = await node.open({ torrent: parseDescriptor(readFileSync(process.argv[1])), key: undefined,
      dir: process.argv[2] + '/release', stateFile: process.argv[2] + '/state', onHave: () => process.stdout.write('.') })
    process.stdout.write('+'.repeat(swarm.have().pieces))
    swarm.addPeers([{ host: '127.0.0.1', port: Number(process.argv[3]) }])
    await swarm.done`
  let had = 0
  for (let kill = 0; kill < 3; kill++) {
    const args = [
      '--input-type=module',
      '-e',
      program,
      descriptorFile,
      join(playground.dir, 'm'),
      String(seed.node.port),
    ]
    const child = spawn(process.execPath, args, { stdio: ['ignore', 'pipe', 'inherit'] })
    const exited = new Promise((resolve) => child.on('exit', resolve))
    let output = ''
    child.stdout.on('data', (chunk: Buffer) => {
      output += chunk
    })
    const goal = had + 15 + kill * 5
    await until('it has more pieces', () => output.length >= goal)
    child.kill('SIGKILL')
    await exited
    const resumed = output.lastIndexOf('+') + 1
    // what was written but not yet recorded is found by hashing; a piece half written is not
    assert.ok(resumed >= had - 4, `${resumed} pieces taken over of ${had}`)
    had = output.length
  }
  const fetched = await fetchRest(playground, 'm')
  assert.ok(fetched < sizeBytes - (had - 5) * pieceLengthBytes, `${fetched} bytes though ${had} pieces were there`)
})

test('a fast download records what came without waiting for its time', async () => {
  await using playground = await Playground.create()
  const large = sampleArtifact({ x: 140 << 20 }, 1 << 20)
  // it lacks the last piece, so nobody ends
  const seedFolder = join(playground.dir, 'seed', 'release')
  await writeRelease(seedFolder, large)
  await truncate(join(seedFolder, 'x'), 139 << 20)
  const seed = await playground.node()
  await playground.open(seed, large, { name: 'seed' })
  const never = () => () => {}
  await using node = await SwarmNode.listen({
    ...{ host: '127.0.0.1', port: 0, log: { debug() {}, info() {}, error() {} } },
    clock: { ...systemClock, every: (ms, run) => (ms > 1000 ? never() : systemClock.every(ms, run)) },
  })
  const leech = await playground.open(node, large, { name: 'm' })
  leech.addPeers([{ host: '127.0.0.1', port: seed.port }])
  const state = join(playground.dir, 'm', 'state')
  await until('it is recorded', async () => ((await loadProgress(state, large.descriptor))?.pieces.count ?? 0) >= 128)
  assert.ok(leech.missingCount > 0)
})

test('an aborted swarm rejects and can be opened again', async () => {
  await using playground = await Playground.create()
  const seed = await playground.seed(sample, { uploadBytesPerSecond: 5e6 })
  const node = await playground.node()
  const abort = new AbortController()
  const leech = await playground.open(node, sample, { name: 'm', signal: abort.signal })
  leech.addPeers([seed.address])
  await until('it runs', () => leech.have().pieces > 2)
  abort.abort()
  const error: unknown = await leech.done.catch((reason) => reason)
  assert.is((error as { code?: string }).code, 'Cancelled')
  await leech[Symbol.asyncDispose]()
  const again = await playground.open(node, sample, { name: 'm' })
  assert.ok(again.have().pieces > 2)
})

test.run()
