import { randomBytes, randomFillSync } from 'node:crypto'
import { chmod, readFile, truncate } from 'node:fs/promises'
import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { TestRegion, type TestRelease } from './fixture.ts'
import { releaseName } from './releases.ts'
import type { TestMachine } from './testMachine.ts'

const test = suite('agent delta')

const filesOf = ({ dataDir }: TestMachine, { template }: TestRelease) =>
  join(dataDir, 'releases', releaseName(template.artifact), 'files')

/** What the machine's log says of how a release came. */
async function bytesOf(machine: TestMachine, { name }: TestRelease): Promise<{ peers: number; local: number }> {
  const log = await readFile(join(machine.dir, 'agent.log'), 'utf8')
  const line = log.split('\n').find((each) => each.includes('release complete') && each.includes(`"${name}"`))
  const { downloadedFromPeersBytes, takenFromLocalBytes } = JSON.parse(line ?? '{}') as Record<string, number>
  return { peers: downloadedFromPeersBytes ?? Number.NaN, local: takenFromLocalBytes ?? Number.NaN }
}

test('of a second release only the difference comes from peers', async () => {
  await using world = await TestRegion.create()
  const machine = await world.machine('m1')
  const fill = randomBytes(20 << 20)
  const one = await world.release('one', { fill })
  world.deploy(1, one)
  machine.start()
  await machine.runs('one')
  await machine.reached('Healthy', 1)
  randomFillSync(fill, 7 << 20, 1000)
  const two = await world.release('two', { fill })
  world.deploy(2, two, one)
  await machine.runs('two')
  assert.ok((await readFile(join(filesOf(machine, two), 'fill'))).equals(fill))
  const { peers, local } = await bytesOf(machine, two)
  assert.is(peers + local, two.template.artifact.sizeBytes)
  // the changed chunks of 64 KiB on average, and the application itself
  assert.ok(peers > 0 && peers <= 400_000, `${peers} bytes from peers`)
})

test('a release on disk that is cut short costs bytes and nothing else', async () => {
  await using world = await TestRegion.create()
  const machine = await world.machine('m1')
  const fill = randomBytes(4 << 20)
  const one = await world.release('one', { fill })
  world.deploy(1, one)
  machine.start()
  await machine.runs('one')
  await machine.reached('Healthy', 1)
  const file = join(filesOf(machine, one), 'fill')
  await chmod(file, 0o644)
  await truncate(file, 1 << 20)
  const two = await world.release('two', { fill })
  world.deploy(2, two, one)
  await machine.runs('two')
  assert.ok((await readFile(join(filesOf(machine, two), 'fill'))).equals(fill))
  const { peers, local } = await bytesOf(machine, two)
  assert.is(peers + local, two.template.artifact.sizeBytes)
  assert.ok(local > 0 && peers > 2 << 20, `${peers} bytes from peers, ${local} from the disk`)
})

test.run()
