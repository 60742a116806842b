import { lstat, readdir, readlink, stat } from 'node:fs/promises'
import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import type { Activation } from '../api/activation.ts'
import { freePort } from '../hack/parts/process.ts'
import { TestRegion, until } from './fixture.ts'
import { identify } from './supervisor/processes.ts'

const test = suite('agent')

test('a machine installs its first release, then updates: the old process ends, modes and links are as built', async () => {
  await using world = await TestRegion.create()
  const machine = await world.machine('m1')
  machine.start()
  const one = await world.release('one')
  world.deploy(1, one)
  const pid = Number(await machine.runs('one'))
  const healthy = await machine.reached('Healthy', 1)
  assert.is(healthy.running, one.templateHash)
  assert.is(healthy.grantId, 'grant-m1-1')
  const link = await readlink(machine.current)
  assert.match(link, /^\.\.\/\.\.\/releases\/[0-9a-f]{16}\/files$/)
  assert.is((await stat(join(machine.current, 'bin', 'run'))).mode & 0o777, 0o555)
  assert.is((await stat(join(machine.current, 'app.cjs'))).mode & 0o777, 0o444)
  assert.is((await stat(machine.current)).mode & 0o222, 0)
  assert.ok((await lstat(join(machine.current, 'bin', 'link'))).isSymbolicLink())
  assert.is(await readlink(join(machine.current, 'bin', 'link')), '../app.cjs')
  assert.is(await machine.ask('/cwd'), join(machine.dataDir, 'places', 'web', link))
  if (process.getuid?.() === 0) assert.is.not(await machine.ask('/uid'), '0', 'not as root')

  const two = await world.release('two')
  world.deploy(2, two, one)
  await machine.runs('two')
  await machine.reached('Healthy', 2)
  assert.is(identify(pid), undefined, 'the old process is gone')
  const three = await world.release('three')
  world.deploy(3, three, two)
  await machine.runs('three')
  await until('only the effective and the last good release are kept', async () => {
    const names = await readdir(join(machine.dataDir, 'releases'))
    return names.length === 2
  })
})

test('a release that is not healthy is taken back, and the machine says why', async () => {
  await using world = await TestRegion.create()
  const machine = await world.machine('m1')
  machine.start()
  const one = await world.release('one')
  world.deploy(1, one)
  await machine.runs('one')
  await machine.reached('Healthy', 1)
  for (const [revision, health] of [
    [2, 'bad'],
    [3, 'exit'],
  ] as const) {
    const bad = await world.release(`bad-${health}`, { health, activation: { deadline: '1500ms' } })
    world.deploy(revision, bad, one)
    const report = await machine.reached('RolledBack', revision)
    assert.is(report.reason, 'ActivationFailed')
    assert.match(report.message ?? '', health === 'bad' ? /healthz answered 500/ : /code 3/)
    assert.is(report.running, one.templateHash)
    await machine.runs('one')
  }
})

test('health may be a port that takes connections, or a command that ends with 0', async () => {
  await using world = await TestRegion.create()
  const machine = await world.machine('m1')
  machine.start()
  const port = '$(WEB_PORT)'
  const one = await world.release('one', { activation: { health: { tcp: { port } } } })
  world.deploy(1, one)
  await machine.reached('Healthy', 1)
  const two = await world.release('two', { activation: { health: { exec: { command: ['test', '-f', 'app.cjs'] } } } })
  world.deploy(2, two, one)
  await machine.reached('Healthy', 2)
  const closed = String(await freePort())
  for (const [revision, health, message] of [
    [3, { tcp: { port: Number(closed) } }, /ECONNREFUSED/],
    [4, { exec: { command: ['sh', '-c', 'test "$SHOAL_ARTIFACT" = other'] } }, /sh ended with code 1/],
    [5, { exec: { command: ['./missing'] } }, /ENOENT/],
  ] as const) {
    const bad = await world.release(`bad-${revision}`, {
      activation: { health: health as Activation['health'], deadline: '1500ms' },
    })
    world.deploy(revision, bad, two)
    const report = await machine.reached('RolledBack', revision)
    assert.match(report.message ?? '', message)
    await machine.runs('two')
  }
})

test('the agent’s restart, stop and kill never touch the application', async () => {
  await using world = await TestRegion.create()
  const machine = await world.machine('m1')
  const one = await world.release('one')
  world.deploy(1, one)
  let agent = machine.start()
  const pid = await machine.runs('one')
  await machine.reached('Healthy', 1)
  await agent.stop()
  machine.reports = []
  agent = machine.start()
  assert.is((await machine.reached('Healthy', 1)).running, one.templateHash)
  assert.is(await machine.runs('one'), pid)
  await agent.kill()
  // The supervisor too: the application is found running by the next one.
  const supervisor = await machine.supervisorPid()
  process.kill(supervisor, 'SIGKILL')
  await until('the supervisor is gone', () => identify(supervisor) === undefined)
  machine.reports = []
  machine.start()
  await machine.reached('Healthy', 1)
  assert.is(await machine.runs('one'), pid)
  assert.is.not(await machine.supervisorPid(), supervisor)
})

test('an application that crashes is started again', async () => {
  await using world = await TestRegion.create()
  const machine = await world.machine('m1')
  world.deploy(1, await world.release('one'))
  machine.start()
  const pid = await machine.runs('one')
  await machine.reached('Healthy', 1)
  process.kill(Number(pid), 'SIGKILL')
  await until('another process answers', async () => ![undefined, pid].includes(await machine.ask('/pid')))
  await machine.reached('Healthy', 1)
})

test.run()
