import { execFile } from 'node:child_process'
import { readdir, readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { promisify } from 'node:util'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { type Program, until } from '../hack/parts/process.ts'
import { findProgram } from '../hack/parts/programs.ts'
import { requeueLost } from '../queue/lease.ts'
import { Fixture, running } from './fixture.ts'

const run = promisify(execFile)
const test = suite('worker and lease')
const fixture = await Fixture.start()
// Not to be divided by three, as 10 s and 20 s are not.
fixture.leaseMs = 3001
fixture.heartbeatMs = 200
let workers: Program[] = []
let seconds = 98_700
test.before.each(() => {
  fixture.asked.length = 0
})
test.after.each(async () => {
  if (process.env.SHOAL_TEST_LOG) for (const worker of workers) console.log(await worker.log())
  for (const worker of workers) await worker.kill()
  workers = []
  fixture.away.clear()
  await fixture.database.execute('DELETE FROM ready')
})
test.after(() => fixture[Symbol.asyncDispose]())

function start(...given: Parameters<Fixture['startWorker']>): Program {
  const worker = fixture.startWorker(...given)
  workers.push(worker)
  return worker
}
/** A job that hangs, once its build runs: its name, and the command that hangs. */
async function hanging(begin = '') {
  const command = `sleep ${++seconds}`
  const { name } = await fixture.queue(`${begin}\nsetsid ${command} & ${command}`)
  const worker = start(`worker-${seconds}`)
  await until('the build runs', () => running(command) >= 2, { unless: worker, timeoutMs: 20_000 })
  return { name, command, worker, job: await fixture.job(name) }
}
const askedOf = (jobId: number, path: string) =>
  fixture.asked.filter((it) => it.path === path && it.body.jobId === jobId).length
const polls = () => fixture.asked.filter(({ path }) => path === 'claim').length
const goesOn = async () => {
  const before = polls()
  await until('the worker asks for the next job', () => polls() > before)
}
/** Of workers; beside them is what workers share. */
const foldersIn = async (work: string) => (await readdir(work)).filter((name) => name.startsWith('shoal-'))
const gone = (command: string, timeoutMs?: number) =>
  until('the build is gone', () => running(command) === 0, { ...(timeoutMs !== undefined && { timeoutMs }) })

test('a worker frozen for longer than its lease stops the build by itself and says nothing more of it', async () => {
  const { job, command, worker } = await hanging()
  await worker.pause()
  await delay(fixture.leaseMs + 300)
  const before = fixture.asked.filter((it) => it.body.jobId === job.id).length
  worker.resume()
  await gone(command, 5000)
  await goesOn()
  assert.is(fixture.asked.filter((it) => it.body.jobId === job.id).length, before)
})

test('a build that ended while its worker was frozen is not reported', async () => {
  const go = join(await fixture.shared('frozen'), 'go')
  const { name } = await fixture.queue(`mkdir out; echo 1 >out/a; until [ -e ${go} ]; do sleep 0.05; done`, {
    command: ['./build.sh', go],
  })
  const worker = start('frozen')
  await until('the build runs', () => running(go) > 0, { timeoutMs: 20_000 })
  await until('it is claimed', async () => (await fixture.job(name)).phase === 'Running')
  await worker.pause()
  await writeFile(go, '')
  await delay(fixture.leaseMs + 300)
  worker.resume()
  await goesOn()
  const { id } = await fixture.job(name)
  assert.is(askedOf(id, 'finish'), 0)
  assert.is(askedOf(id, 'upload/start'), 0)
})

test('a worker whose heartbeats fail stops within the lease', async () => {
  const { job, command } = await hanging()
  fixture.away.set('heartbeat', 1000)
  const began = performance.now()
  await gone(command, fixture.leaseMs + 3000)
  assert.ok(performance.now() - began > fixture.leaseMs / 2)
  assert.is(askedOf(job.id, 'finish'), 0)
  await goesOn()
})

test('some failed heartbeats do no harm', async () => {
  const { job, command } = await hanging()
  fixture.away.set('heartbeat', 3)
  await until('they succeed again', () => fixture.away.get('heartbeat') === 0)
  const before = askedOf(job.id, 'heartbeat')
  await until('more follow', () => askedOf(job.id, 'heartbeat') > before + 8)
  assert.is(running(command) >= 2, true)
})

test('a refused worker stops within one heartbeat', async () => {
  const { job, command } = await hanging()
  const [lease] = await fixture.database.query<{ token: string }>('SELECT token FROM slot WHERE job_id = ?', [job.id])
  fixture.away.set('claim', 5)
  await requeueLost(fixture.database, { jobId: job.id, token: lease?.token ?? '' })
  await gone(command, 3000)
  assert.is(askedOf(job.id, 'finish'), 0)
})

test('SIGTERM ends the build and hands the job back, not as an attempt', async () => {
  const { name, command, worker } = await hanging()
  await worker.stop()
  assert.is(await worker.exited, 'code 0')
  assert.is(running(command), 0)
  const job = await fixture.job(name)
  assert.equal([job.phase, job.attempt], ['Queued', 0])
  assert.equal(await foldersIn(join(fixture.dir, 'work')), [])
})

test('with a grace period the build goes on after SIGTERM', async () => {
  const go = join(await fixture.shared('grace'), 'go')
  const { name } = await fixture.queue(`until [ -e ${go} ]; do sleep 0.05; done; mkdir out; echo 1 >out/a`)
  const worker = start('grace', { SHOAL_GRACE: '30s' })
  await until('it runs', async () => (await fixture.job(name)).phase === 'Running')
  worker.signal('SIGTERM')
  await until('it is stopping', async () => (await worker.log()).includes('stopping'))
  await writeFile(go, '')
  assert.is((await fixture.reaches(name, ['Replicating', 'Queued'])).phase, 'Replicating')
  assert.is(await worker.exited, 'code 0')
})

test('a build ends with a worker that is killed, and the next worker removes what is left', async () => {
  const { command, worker } = await hanging()
  await worker.kill()
  await gone(command)
  const work = join(fixture.dir, 'work')
  const [left = ''] = await foldersIn(work)
  assert.ok(left)
  start('next')
  await until('the folder is gone', async () => !(await foldersIn(work)).includes(left))
})

test('two workers build side by side, as different users', async () => {
  const shared = await fixture.shared('two')
  const script = (n: number) =>
    `id -u >${shared}/${n}; until [ -s ${shared}/${3 - n} ]; do sleep 0.05; done; mkdir out; echo 1 >out/a`
  const jobs = [await fixture.queue(script(1)), await fixture.queue(script(2))]
  start('one')
  start('two')
  for (const { name } of jobs) assert.is((await fixture.reaches(name, ['Replicating', 'Failed'])).phase, 'Replicating')
  const uids = await Promise.all([1, 2].map((n) => readFile(join(shared, String(n)), 'utf8')))
  if (process.getuid?.() === 0) assert.is.not(uids[0], uids[1])
})

test('a worker that is not root ends what a build started all the same', async () => {
  if (process.getuid?.() !== 0 || !findProgram('setpriv')) return
  const work = await fixture.shared('mine')
  const command = `sleep ${++seconds}`
  // Git's server refuses repositories of other users.
  const url = join(work, 'source.git')
  await run('cp', ['-R', fixture.repository.bare, url])
  const { name, commit } = await fixture.queue(`setsid ${command} & mkdir out; id -u >out/a`, { source: { url } })
  await run('git', ['fetch', '--quiet', fixture.repository.bare, commit], { cwd: url })
  await run('chown', ['-R', '19999:19999', url])
  const token = join(work, 'token')
  await run('install', ['--mode=400', '--owner=19999', join(fixture.dir, 'token'), token])
  start('mine', { SHOAL_WORKSPACE: work, SHOAL_TOKEN_FILE: token }, [
    'setpriv',
    '--reuid=19999',
    '--regid=19999',
    '--clear-groups',
  ])
  const job = await fixture.reaches(name, ['Replicating', 'Failed'])
  assert.is(job.phase, 'Replicating', job.message ?? '')
  assert.is(running(command), 0)
  const { key } = JSON.parse(job.facts ?? '{}')
  assert.is(Buffer.from(await fixture.store.readAll(key, 100)).toString(), '19999\n')
})

test.run()
