import { execFile } from 'node:child_process'
import { createHmac } from 'node:crypto'
import { chmod, readFile, writeFile } from 'node:fs/promises'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { type WorkersAnswer, workersAnswer } from '../api/workersApi.ts'
import type { AlarmNote } from '../controllers/deployment/alarmWebhook.ts'
import { type TemporaryDir, temporaryDir, until } from '../hack/parts/process.ts'
import { ApiClient } from '../runtime/apiClient.ts'
import type { AnyObject } from '../runtime/cluster.ts'
import { core } from '../runtime/core.ts'
import { Database } from '../runtime/sql.ts'
import { addPipeline, ended } from './pipelines.ts'
import { bringUp, type TestSystem } from './system.ts'

const test = suite('scaling and alarms')
const run = promisify(execFile)
const namespace = 'shoal-system'
let up: TestSystem
/** As the administrator. */
let hub: ApiClient
let shared: TemporaryDir

const secret = 'of the alarms'
const notes: AlarmNote[] = []
const unsigned: string[] = []
const receiver = createServer(async (request, response) => {
  const body = (await Array.fromAsync(request)).map(String).join('')
  const signature = `sha256=${createHmac('sha256', secret).update(body).digest('hex')}`
  if (request.headers['x-hub-signature-256'] === signature) notes.push(JSON.parse(body) as AlarmNote)
  else unsigned.push(body)
  response.writeHead(204).end()
})

test.before(async () => {
  shared = await temporaryDir('shoal-builds')
  await chmod(shared.path, 0o755)
  await new Promise<void>((resolve) => receiver.listen(0, '127.0.0.1', resolve))
  const { port } = receiver.address() as AddressInfo
  const settings = {
    ...{ LEASE: '20s', HEALTH_INTERVAL: '1s', ALARM: '24s', ALARM_SECRET: secret },
    ALARM_WEBHOOK: `http://127.0.0.1:${port}/alarms`,
    // As fast as processes start here.
    ...{ SCALE_INTERVAL: '500ms', SCALE_TARGET_WAIT: '1s', SCALE_START: '1s', SCALE_COOL_DOWN: '20s' },
  }
  up = await bringUp({}, { settings: { hub: settings } })
  const { state, hubServer } = up.system
  hub = new ApiClient({
    baseUrl: state.hub.url,
    ca: await readFile(state.hub.ca, 'utf8'),
    token: () => hubServer.token,
  })
})
test.after(async () => {
  receiver.close()
  await hub[Symbol.asyncDispose]()
  await up[Symbol.asyncDispose]()
  await shared[Symbol.asyncDispose]()
})

/** `shoal workers`, as somebody with the demo's kubeconfig. */
async function shoalWorkers(...args: string[]): Promise<string> {
  const { kubeconfig, hub } = up.system.state
  const main = join(import.meta.dirname, '../main.ts')
  const { stdout } = await run(process.execPath, [main, 'workers', ...args], {
    env: { PATH: process.env.PATH, KUBECONFIG: kubeconfig, SHOAL_HUB_CA: hub.ca, SHOAL_HUB_URL: hub.url },
  })
  return stdout
}
const seen = () => hub.request('GET', '/v1/workers', { schema: workersAnswer })
const count = (answer: WorkersAnswer, state: string) => answer.workers.filter((one) => one.state === state).length
const deployment = () => up.kube.cluster.get<AnyObject>(core.Deployment, namespace, 'shoal-worker')
const podNames = async () =>
  (await up.kube.cluster.list(core.Pod, { namespace })).items.map(({ metadata }) => metadata.name).sort()
const eventNotes = async (reason: string) => {
  const selection = { namespace, fieldSelector: `regarding.name=shoal-worker,reason=${reason}` }
  return (await up.kube.cluster.list<{ note: string }>(core.Event, selection)).items.map(({ note }) => note)
}

test('many pushes bring more workers; after the cool-down they go, and none was stopped while it built', () =>
  up.explain(async () => {
    const pipeline = await addPipeline(up, 'many', { timeout: '4m' }, { max: 10 })
    const jobs: string[] = []
    /** A build that goes on when the file is there. */
    const push = async (gate: string) => {
      const script = `until [ -e ${gate} ]; do sleep 0.1; done; mkdir out; echo ${jobs.length} >out/a`
      const { job } = await pipeline.push(script)
      jobs.push(job)
      return job
    }
    const gate = join(shared.path, 'go')
    for (let n = 0; n < 10; n++) await push(gate)
    const full = await until(
      'all four workers build',
      async () => {
        const answer = await seen()
        return count(answer, 'busy') === 4 && answer.queue.ready === 6 ? answer : undefined
      },
      { timeoutMs: 60_000, intervalMs: 500 },
    )
    const { oldestReadySeconds = 0, ...queue } = full.queue
    assert.equal(queue, { ready: 6, blocked: 0, running: 4, wanted: { standard: 4 } })
    assert.ok(oldestReadySeconds > 0)
    assert.equal(workersAnswer.parse(JSON.parse(await shoalWorkers('-o', 'json'))).queue.wanted, { standard: 4 })
    const table = /^NAME +CLASS +STATE +JOB.*\nworker-1-\d+-[0-9a-f]{8} +standard +busy +demo\/many-.*\n\n6 jobs ready/s
    assert.match(await shoalWorkers(), table)
    const metrics = async () => (await hub.bytes('GET', '/metrics')).toString()
    for (const line of [
      /^shoal_workers\{class="standard",state="busy"\} 4$/m,
      /^shoal_workers_wanted\{class="standard"\} 4$/m,
      /^shoal_queue_jobs\{state="ready"\} 6$/m,
      /^shoal_queue_oldest_ready_seconds [1-9][\d.]*$/m,
      /^shoal_claims_total 4$/m,
    ])
      await until(String(line), async () => line.test(await metrics()))
    await writeFile(gate, '')
    for (const job of jobs) assert.is((await ended(up, job, 120_000)).status?.phase, 'Succeeded')
    // Somebody builds all the time while the others are let go.
    while ((await podNames()).length > 2 && jobs.length < 100) await ended(up, await push('/'))
    assert.is((await podNames()).length, 2)
    await until('two workers are left', async () => (await seen()).workers.length === 2, { timeoutMs: 20_000 })
    assert.is(up.system.state.workers.length, 2)
    assert.match((await eventNotes('ScaledUp')).join('\n'), /jobs ready/)
    assert.match((await eventNotes('ScaledDown')).join('\n'), /to 2 workers/)
    await using database = new Database(up.system.database.url('builds'))
    const [row] = await database.query(
      'SELECT COUNT(*) AS jobs, SUM(lost_workers) AS lost, SUM(handed_back) AS handedBack FROM job',
    )
    assert.equal(row, { jobs: jobs.length, lost: 0, handedBack: 0 })
    assert.equal(notes, [])
  }))

test('a killed and a frozen worker raise the alarm, are replaced, and what is queued meanwhile is built', () =>
  up.explain(async () => {
    const before = await podNames()
    const [killed = '', frozen = ''] = before
    await up.system.programs.get(killed)?.kill()
    await up.system.programs.get(frozen)?.pause()
    const { job } = await (await addPipeline(up, 'meanwhile')).push('mkdir out; echo 1 >out/a')
    const raised = (pod: string) => notes.find((note) => note.state === 'raised' && note.worker.startsWith(`${pod}-`))
    for (const pod of before) await until(`an alarm about ${pod}`, () => raised(pod), { timeoutMs: 60_000 })
    const { worker, silentSeconds, lastSeen, ...note } = raised(killed) ?? {}
    assert.equal(note, {
      ...{ alarm: 'WorkerSilent', state: 'raised', class: 'standard', namespace },
      message: `worker ${worker} is silent since ${lastSeen}`,
    })
    assert.ok((silentSeconds ?? 0) >= 24, String(silentSeconds))
    assert.match((await eventNotes('WorkerSilent')).join('\n'), new RegExp(`${killed}-`))

    await until(
      'others have taken their place',
      async () => {
        const names = await podNames()
        return names.length === 2 && !names.some((name) => before.includes(name))
      },
      { timeoutMs: 30_000 },
    )
    assert.is((await ended(up, job)).status?.phase, 'Succeeded')
    await until(
      'all is well again',
      async () => {
        const { status } = (await deployment()) as { status?: { conditions?: { type: string; status: string }[] } }
        const responsive = status?.conditions?.find(({ type }) => type === 'WorkersResponsive')
        return responsive?.status === 'True' && notes.filter(({ state }) => state === 'resolved').length === 2
      },
      { timeoutMs: 30_000 },
    )
    assert.equal(notes.map(({ state }) => state).sort(), ['raised', 'raised', 'resolved', 'resolved'])
    assert.equal(unsigned, [])
    await until('the frozen one is gone', () => !up.system.programs.has(frozen))
  }))

test.run()
