import { execFileSync } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { temporaryDir } from '../hack/parts/process.ts'
import { TestRegion, until } from './fixture.ts'
import type { TestMachine } from './testMachine.ts'

const run = (program: string, ...args: string[]) => execFileSync(program, args, { stdio: 'pipe' })
const may = await permitted()
/** Disks that fail are made by mounting, and by attributes, which not every machine lets a test do. */
const test = suite('agent disk')
const mounted = may.mount ? test : test.skip
const attributed = may.attributes ? test : test.skip

async function permitted(): Promise<{ mount: boolean; attributes: boolean }> {
  await using dir = await temporaryDir('shoal-may')
  const may = (...steps: string[][]) => {
    try {
      for (const [program = '', ...args] of steps) run(program, ...args)
      return true
    } catch {
      return false
    }
  }
  return {
    mount: may(['mount', '-t', 'tmpfs', 'tmpfs', dir.path], ['umount', dir.path]),
    attributes: may(['chattr', '+i', dir.path], ['chattr', '-i', dir.path]),
  }
}

/** A machine whose releases are on a disk of their own. */
async function machineWithDisk(world: TestRegion, mebibytes: number) {
  const machine = await world.machine('m1')
  const releases = join(machine.dataDir, 'releases')
  mkdirSync(releases, { recursive: true })
  run('mount', '-t', 'tmpfs', '-o', `size=${mebibytes}m,mode=755`, 'tmpfs', releases)
  return {
    machine,
    releases,
    remount: (options: string) => run('mount', '-o', `remount,${options}`, releases),
    async [Symbol.asyncDispose]() {
      await machine[Symbol.asyncDispose]()
      run('umount', '-l', releases)
    },
  }
}

const failing = (machine: TestMachine, reason: string) =>
  until(
    `it reports ${reason}`,
    () => machine.reports.find((report) => report.reason === reason && report.state !== 'Healthy'),
    { timeoutMs: 20_000 },
  )
const failures = (machine: TestMachine) =>
  readFileSync(join(machine.dir, 'agent.log'), 'utf8')
    .split('\n')
    .filter((line) => line.includes('fetch failed'))
    .map((line) => JSON.parse(line) as { level: string })

mounted('a disk without room is reported; what runs goes on, and with room again so does the download', async () => {
  await using world = await TestRegion.create()
  await using disk = await machineWithDisk(world, 100)
  const { machine, remount } = disk
  const one = await world.release('one')
  world.deploy(1, one)
  machine.start()
  const pid = await machine.runs('one')
  const two = await world.release('two', { fill: randomBytes(60 << 20) })
  world.deploy(2, two, one)
  const { message } = await failing(machine, 'DiskFull')
  assert.match(message ?? '', /bytes needed/)
  assert.is(await machine.ask('/pid'), pid)
  remount('size=300m')
  await machine.runs('two', 30_000)
})

mounted(
  'a disk that fills up in the middle of two downloads is reported once, and both go on when it has room',
  async () => {
    await using world = await TestRegion.create(6 << 20)
    await using disk = await machineWithDisk(world, 260)
    const { machine, releases } = disk
    const one = await world.release('one')
    world.deploy(1, one)
    machine.start()
    const pid = await machine.runs('one')
    const [good, two] = [
      await world.release('good', { fill: randomBytes(24 << 20) }),
      await world.release('two', { fill: randomBytes(24 << 20) }),
    ]
    world.deploy(2, two, good)
    await until('part of it is there', () => machine.reports.some(({ fetchedBytes = 0 }) => fetchedBytes > 1 << 20), {
      timeoutMs: 20_000,
    })
    const ballast = join(releases, 'ballast')
    try {
      writeFileSync(ballast, Buffer.alloc(260 << 20))
    } catch {
      // so far, and no further
    }
    await failing(machine, 'DiskFull')
    assert.is(await machine.ask('/pid'), pid)
    await until('each was tried again', () => failures(machine).length > 3, { timeoutMs: 30_000 })
    const said = failures(machine).filter(({ level }) => level === 'error')
    assert.ok(said.length <= 2, `said once for each release: ${JSON.stringify(said)}`)
    rmSync(ballast)
    await machine.runs('two', 60_000)
  },
)

mounted(
  'a disk that is read-only is reported; what runs goes on, and writable again so does the download',
  async () => {
    await using world = await TestRegion.create()
    await using disk = await machineWithDisk(world, 300)
    const { machine, remount } = disk
    const one = await world.release('one')
    world.deploy(1, one)
    machine.start()
    const pid = await machine.runs('one')
    await machine.reached('Healthy', 1)
    remount('ro')
    const two = await world.release('two', { fill: randomBytes(1 << 20) })
    world.deploy(2, two, one)
    await failing(machine, 'DiskReadOnly')
    assert.is(await machine.ask('/pid'), pid)
    remount('rw')
    await machine.runs('two', 30_000)
  },
)

attributed(
  'a folder that may not be written is reported; what runs goes on, and so does the download afterwards',
  async () => {
    await using world = await TestRegion.create()
    const machine = await world.machine('m1')
    const one = await world.release('one')
    world.deploy(1, one)
    machine.start()
    const pid = await machine.runs('one')
    await machine.reached('Healthy', 1)
    const releases = join(machine.dataDir, 'releases')
    run('chattr', '+i', releases)
    try {
      const two = await world.release('two', { fill: randomBytes(1 << 20) })
      world.deploy(2, two, one)
      const { message } = await failing(machine, 'DiskDenied')
      assert.match(message ?? '', /releases/)
      assert.is(await machine.ask('/pid'), pid)
    } finally {
      run('chattr', '-i', releases)
    }
    await machine.runs('two', 30_000)
  },
)

test.run()
