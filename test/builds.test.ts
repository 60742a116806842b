import { execFile } from 'node:child_process'
import { createHmac } from 'node:crypto'
import { readdir, readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { Agent, request } from 'undici'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { BuildJob } from '../api/buildJob.ts'
import type { JobRecord } from '../api/jobApi.ts'
import { until } from '../hack/parts/process.ts'
import { bucket } from '../hack/story/parts.ts'
import { addPipeline, ended, outcome } from './pipelines.ts'
import { bringUp, type TestSystem } from './system.ts'

const run = promisify(execFile)
const test = suite('builds on the whole system')
let up: TestSystem

test.before(async () => {
  up = await bringUp()
})
test.after(async () => {
  await up[Symbol.asyncDispose]()
})

/** The command, as somebody with the demo's kubeconfig. */
function shoal(command: string, ...args: string[]) {
  const { kubeconfig, namespace, hub } = up.system.state
  const main = join(import.meta.dirname, '../main.ts')
  return run(process.execPath, [main, command, '--namespace', namespace, ...args], {
    env: { PATH: process.env.PATH, KUBECONFIG: kubeconfig, SHOAL_HUB_CA: hub.ca },
    maxBuffer: 64 << 20,
  })
}

/** Waits until a worker builds it. */
const runs = (name: string) =>
  up.kube.until(
    { kind: BuildJob, namespace: up.system.state.namespace, name },
    (it) => it.status?.phase === 'Running',
    { what: `${name} runs`, timeoutMs: 30_000 },
  )

const refused: [what: string, script: string, code: string, build?: { timeout?: string; output?: string }][] = [
  ['a build that fails', 'echo no such luck; exit 3', 'BuildFailed'],
  ['a build that hangs', 'sleep 600', 'BuildTimeout', { timeout: '2s' }],
  ['an output that is not there', 'true', 'OutputMissing'],
  ['an output that is a link out of the workspace', 'ln -s /etc out', 'OutputOutside'],
  ['an output that is above the workspace', 'true', 'OutputOutside', { output: '../..' }],
]
refused.forEach(([what, script, code, build], n) => {
  test(`${what} ends the job with ${code}, and the next job builds`, () =>
    up.explain(async () => {
      const pipeline = await addPipeline(up, `refused-${n}`, build)
      const { job } = await pipeline.push(script)
      const failed = await ended(up, job)
      assert.is(failed.status?.phase, 'Failed')
      assert.is(outcome(failed)?.reason, code)
      const good = await (await addPipeline(up, `good-${n}`)).push('mkdir out; echo 1 >out/a')
      assert.is((await ended(up, good.job)).status?.phase, 'Succeeded')
    }))
})

test('a commit that does not exist ends the job with CommitNotFound', () =>
  up.explain(async () => {
    const pipeline = await addPipeline(up, 'unknown')
    await pipeline.push('mkdir out; echo 1 >out/a')
    const { namespace } = up.system.state
    const spec = { pipelineRef: 'unknown', commit: 'f'.repeat(40), ref: 'refs/heads/main' }
    await up.kube.cluster.create(BuildJob, BuildJob.make({ name: 'by-hand', namespace }, spec) as never)
    assert.is(outcome(await ended(up, 'by-hand'))?.reason, 'CommitNotFound')
  }))

test('a build that prints 100 MB succeeds, and its log is cut to head and tail with a mark', () =>
  up.explain(async () => {
    const pipeline = await addPipeline(up, 'loud')
    const { job } = await pipeline.push('mkdir out; echo 1 >out/a; yes 0123456789abcdef | head -c 100000000')
    assert.is((await ended(up, job, 90_000)).status?.phase, 'Succeeded')
    const { stdout } = await shoal('logs', job, '--hub', up.system.state.hub.url)
    assert.ok(stdout.length > 1000 && stdout.length < 20_000_000, `the kept log has ${stdout.length} bytes`)
    assert.match(stdout, /left out|cut|omitted/)
    assert.match(stdout, /^0123456789abcdef$/m)
  }))

test('shoal cancel ends a running build; a job that is not there is named', () =>
  up.explain(async () => {
    const pipeline = await addPipeline(up, 'endless')
    const { job } = await pipeline.push('sleep 600')
    await runs(job)
    assert.match((await shoal('cancel', job)).stdout, new RegExp(`^${job} is being cancelled$`, 'm'))
    assert.is((await ended(up, job)).status?.phase, 'Cancelled')
    const refusal = await shoal('cancel', 'nobody').catch((error: { code: number; stderr: string }) => error)
    assert.match('stderr' in refusal ? refusal.stderr : '', /there is no BuildJob nobody/)
  }))

test('shoal rebuild builds a commit again, shoal logs follows it to its end and into the bucket, shoal jobs lists both', () =>
  up.explain(async () => {
    const pipeline = await addPipeline(up, 'again')
    const { job } = await pipeline.push('mkdir out; echo 1 >out/a; echo this is said')
    assert.is((await ended(up, job)).status?.phase, 'Succeeded')
    const hub = ['--hub', up.system.state.hub.url]
    assert.is((await shoal('rebuild', job, ...hub)).stdout, `${job}-2 is queued\n`)
    const { stdout, stderr } = await shoal('logs', '-f', `${job}-2`, ...hub)
    assert.match(stdout, /^this is said$/m)
    assert.match(stderr, new RegExp(`^${job}-2 succeeded$`, 'm'))
    const { stdout: json } = await shoal('jobs', '--pipeline', 'again', '-o', 'json', ...hub)
    const listed = (JSON.parse(json) as JobRecord[]).map(({ name, phase }) => `${name} ${phase}`)
    assert.equal(listed, [`${job}-2 Succeeded`, `${job} Succeeded`])
    const { namespace, stores } = up.system.state
    const folder = join(stores[0]?.dir ?? '', bucket, '_logs', namespace, `${job}-2`)
    const inBucket = async () => (await readdir(folder)).length === 1
    await until('its log is in the bucket', inBucket, { timeoutMs: 30_000 })
    await until('and nowhere else', async () => (await shoal('logs', `${job}-2`, ...hub)).stdout === stdout)
  }))

test('with onPush: CancelOlder a push ends the build of the one before it', () =>
  up.explain(async () => {
    const pipeline = await addPipeline(up, 'newest', {}, { onPush: 'CancelOlder' })
    const older = await pipeline.push('sleep 600')
    await runs(older.job)
    const newer = await pipeline.push('mkdir out; echo 1 >out/a')
    assert.is((await ended(up, older.job)).status?.phase, 'Cancelled')
    assert.is((await ended(up, newer.job)).status?.phase, 'Succeeded')
  }))

test('a wrong signature and an unknown pipeline get the same 401, and touch nothing', () =>
  up.explain(async () => {
    const { hub, namespace, webhook } = up.system.state
    const dispatcher = new Agent({ connect: { ca: await readFile(hub.ca, 'utf8') } })
    const secret = await readFile(webhook.secretFile, 'utf8')
    const body = JSON.stringify({ ref: 'refs/heads/main', before: '0'.repeat(40), after: 'a'.repeat(40) })
    const post = async (pipeline: string, key: string) => {
      const signature = `sha256=${createHmac('sha256', key).update(body).digest('hex')}`
      const answer = await request(`${hub.url}/webhooks/${namespace}/${pipeline}`, {
        method: 'POST',
        dispatcher,
        headers: { 'content-type': 'application/json', 'x-github-event': 'push', 'x-hub-signature-256': signature },
        body,
      })
      return { status: answer.statusCode, text: await answer.body.text() }
    }
    const jobs = async () => (await up.kube.cluster.list(BuildJob, { namespace })).items.map((it) => it.metadata.name)
    const before = await jobs()
    const wrong = await post('web', 'not the secret')
    const unknown = await post('nowhere', secret)
    assert.is(wrong.status, 401)
    assert.equal(unknown, wrong)
    const metrics = await (await request(`${hub.url}/metrics`, { dispatcher })).body.text()
    assert.match(metrics, /^shoal_webhook_refused_total [1-9]/m)
    assert.equal(await jobs(), before)
    await dispatcher.destroy()
  }))

test.run()
