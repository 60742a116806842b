import { readdirSync, readlinkSync } from 'node:fs'
import { appendFile, chmod, mkdir, readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { Artifact } from '../api/artifact.ts'
import type { JobClaim } from '../api/workerApi.ts'
import { type TemporaryDir, temporaryDir, until } from '../hack/parts/process.ts'
import { ApiClient } from '../runtime/apiClient.ts'
import { Database } from '../runtime/sql.ts'
import { addPipeline, ended } from './pipelines.ts'
import { bringUp, type TestSystem } from './system.ts'

const test = suite('lost workers')
let up: TestSystem
let shared: TemporaryDir

test.before(async () => {
  shared = await temporaryDir('shoal-builds')
  await chmod(shared.path, 0o777)
  up = await bringUp({}, { settings: { hub: { LEASE: '12s', HEALTH_INTERVAL: '1s' } } })
})
test.after(async () => {
  await up[Symbol.asyncDispose]()
  await shared[Symbol.asyncDispose]()
})

/** A build that leaves a line in `begun` when it begins and goes on when `go` is there. */
async function slowBuild(name: string) {
  const dir = join(shared.path, name)
  await mkdir(dir)
  await writeFile(join(dir, 'begun'), '')
  for (const path of [dir, join(dir, 'begun')]) await chmod(path, 0o777)
  const pipeline = await addPipeline(up, name)
  const script = `echo x >>${dir}/begun; until [ -e ${dir}/go ]; do sleep 0.1; done; mkdir out; echo 1 >out/a`
  const { job, commit } = await pipeline.push(script)
  const begun = (times: number) =>
    until(
      `${name} has begun ${times} times`,
      async () => (await readFile(join(dir, 'begun'), 'utf8')).length === 2 * times,
      { timeoutMs: 40_000 },
    )
  return { job, commit, begun, go: () => appendFile(join(dir, 'go'), '') }
}

/** The workers, of those we started, in whose workspace a process works. */
function building(): string[] {
  const { workers, dir } = up.system.state
  const folders = readdirSync('/proc').flatMap((pid) => {
    try {
      return /^\d+$/.test(pid) ? [readlinkSync(`/proc/${pid}/cwd`)] : []
    } catch {
      return []
    }
  })
  return workers.map(({ name }) => name).filter((name) => folders.some((at) => at.startsWith(`${join(dir, name)}/`)))
}

/** The claim that is the latest now, as its worker knows it. */
async function leaseOf(job: string): Promise<JobClaim> {
  await using database = new Database(up.system.database.url('builds'))
  const [row] = await database.query<JobClaim>(
    'SELECT job.id AS jobId, slot.token FROM job JOIN slot ON slot.job_id = job.id WHERE job.name = ?',
    [job],
  )
  assert.ok(row)
  return row
}

/** Tells the hub, as a worker, that the job of this claim is built. */
async function finish(claim: JobClaim) {
  const { hub } = up.system.state
  const token = await up.system.hubServer.serviceAccountToken('shoal-system', 'shoal-worker', ['shoal-hub'])
  await using client = new ApiClient({ baseUrl: hub.url, ca: await readFile(hub.ca, 'utf8'), token: () => token })
  await client.request('POST', '/v1/worker/finish', { body: { ...claim, outcome: { result: 'Built' } } })
}

const artifactsOf = async (pipeline: string) =>
  (await up.kube.cluster.list<Artifact>(Artifact, { namespace: up.system.state.namespace })).items.filter(
    (it) => it.spec.pipelineRef === pipeline,
  )

test('a job whose worker was killed is built once, by the other', () =>
  up.explain(async () => {
    const build = await slowBuild('killed')
    await build.begun(1)
    const [name = ''] = building()
    await up.system.programs.get(name)?.kill()
    await build.begun(2)
    await build.go()
    const job = await ended(up, build.job)
    assert.is(job.status?.phase, 'Succeeded')
    assert.is((await artifactsOf('killed')).length, 1)
    await up.system.startAgain(name)
  }))

test('a frozen worker stops by itself when it goes on, and its finish is refused', () =>
  up.explain(async () => {
    const build = await slowBuild('frozen')
    await build.begun(1)
    const [name = ''] = building()
    const frozen = up.system.programs.get(name)
    const old = await leaseOf(build.job)
    await frozen?.pause()
    await build.begun(2)
    frozen?.resume()
    await until('the frozen worker builds no more', () => !building().includes(name), { timeoutMs: 15_000 })
    const replayed = await finish(old).catch((error: { code?: string }) => error.code)
    assert.is(replayed, 'Fenced')
    await build.go()
    const job = await ended(up, build.job)
    assert.is(job.status?.phase, 'Succeeded')
    assert.is((await artifactsOf('frozen')).length, 1)
    assert.ok(frozen?.running, 'it goes on to the next job')
  }))

test.run()
