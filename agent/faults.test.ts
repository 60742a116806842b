import { randomBytes } from 'node:crypto'
import { existsSync } from 'node:fs'
import { chmod, readFile, readlink, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { TestRegion, type TestRelease, until } from './fixture.ts'
import { releaseName } from './releases.ts'
import { identify, isRunning } from './supervisor/processes.ts'
import type { TestMachine } from './testMachine.ts'

const test = suite('agent faults')

const placed = (machine: TestMachine): Promise<string> => readlink(machine.current)
const isOf = (link: string, release: TestRelease): boolean => link.includes(releaseName(release.template.artifact))

test('an agent killed in the middle of a download goes on with what it had', async () => {
  await using world = await TestRegion.create(5 << 20)
  const machine = await world.machine('m1')
  const big = await world.release('big', { fill: randomBytes(40 << 20) })
  world.deploy(1, big)
  const agent = machine.start()
  const dir = join(machine.dataDir, 'releases', releaseName(big.template.artifact))
  await until('part of it is there and recorded', () => existsSync(join(dir, 'swarm.state')), { timeoutMs: 15_000 })
  await agent.kill()
  assert.not(existsSync(join(dir, 'complete')), 'killed before it was whole')
  assert.not(existsSync(machine.current))
  machine.start()
  await machine.runs('big', 30_000)
  const log = await readFile(join(machine.dir, 'agent.log'), 'utf8')
  const [, bytes] = /"downloadedFromPeersBytes":(\d+)[^\n]*release complete/.exec(log) ?? []
  assert.ok(Number(bytes) < 30 << 20, `${bytes} bytes fetched by the second agent`)
})

test('agent and supervisor killed at any moment of a swap leave the old or the new release, whole and running', async () => {
  await using world = await TestRegion.create()
  const machine = await world.machine('m1')
  let old = await world.release('v0')
  world.deploy(1, old)
  machine.start()
  await machine.runs('v0')
  await machine.reached('Healthy', 1)
  const moments = ['at once', 'switched', 'started', 'starting late'] as const
  for (const [i, moment] of moments.entries()) {
    const revision = i + 2
    const next = await world.release(`v${i + 1}`, { activation: { minHealthy: '600ms' } })
    const pid = Number(await machine.ask('/pid'))
    const application = identify(pid)
    world.deploy(revision, next, old)
    const place = join(machine.control, 'place.json')
    await until('the activation has begun', async () => (await readFile(place, 'utf8')).includes('"journal"'), {
      intervalMs: 2,
    })
    if (moment === 'switched') await until('switched', async () => isOf(await placed(machine), next), { intervalMs: 1 })
    if (moment === 'started') await machine.runs(`v${i + 1}`)
    if (moment === 'starting late') await delay(50 + Math.random() * 400)
    const supervisor = await machine.supervisorPid()
    // All of them in three cases of four; the supervisor alone in one.
    process.kill(supervisor, 'SIGKILL')
    if (i !== 1) await machine.agent?.kill()
    assert.ok(isOf(await placed(machine), old) || isOf(await placed(machine), next), moment)
    await until('the supervisor is gone', () => identify(supervisor) === undefined)
    machine.reports = []
    if (i !== 1) machine.start()
    await machine.runs(`v${i + 1}`)
    await machine.reached('Healthy', revision)
    assert.ok(isOf(await placed(machine), next), moment)
    assert.not(application && isRunning(application), 'the old application is gone')
    old = next
  }
})

test('a grant that comes too late is not begun; the next one is', async () => {
  await using world = await TestRegion.create()
  world.beginWithinMs = 0
  const machine = await world.machine('m1')
  world.deploy(1, await world.release('one'))
  machine.start()
  await machine.reached('Fetched', 1)
  const polls = machine.polls
  await until('the grant was given a few times', () => machine.polls > polls + 2)
  assert.not(existsSync(machine.current))
  assert.is(machine.report?.state, 'Fetched')
  assert.match(await readFile(join(machine.dir, 'agent.log'), 'utf8'), /it came too late/)
  machine.grants = machine.grants.map((grant) => ({ ...grant, id: 'another', beginWithinMs: 60_000 }))
  await machine.runs('one')
  assert.is((await machine.reached('Healthy', 1)).grantId, 'another')
})

test('an application that would be root, or another’s user, is not started', async () => {
  await using world = await TestRegion.create()
  const machine = await world.machine('m1')
  world.deploy(1, await world.release('one', { activation: { user: 'root' } }))
  machine.start()
  const report = await machine.reached('Failed', 1)
  assert.match(report.message ?? '', process.getuid?.() === 0 ? /may not run as root/ : /only root/)
  assert.not(existsSync(machine.current))
})

test('a supervisor whose place was deleted starts nothing again, and ends; what runs is left alone', async () => {
  await using world = await TestRegion.create()
  const machine = await world.machine('m1')
  world.deploy(1, await world.release('one'))
  machine.start()
  const pid = Number(await machine.runs('one'))
  await machine.reached('Healthy', 1)
  const supervisor = await machine.supervisorPid()
  await machine.agent?.kill()
  await rm(machine.dataDir, { recursive: true })
  assert.is(await machine.ask(), 'one')
  assert.ok(identify(supervisor))
  process.kill(pid, 'SIGKILL')
  await until('the supervisor has ended', () => identify(supervisor) === undefined)
  assert.is(await machine.ask(), undefined)
})

test('an enrolment whose key others can read is refused', async () => {
  await using world = await TestRegion.create()
  const machine = await world.machine('m1')

  await chmod(join(machine.dir, 'enrolment.json'), 0o644)
  const agent = machine.start()
  assert.is(await agent.exited, 'code 1')
  assert.match(await agent.log(), /other users can read it/)
})

test.run()
