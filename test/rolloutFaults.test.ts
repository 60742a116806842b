import { execFile } from 'node:child_process'
import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { promisify } from 'node:util'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { stringify } from 'yaml'
import { ConfigRepo } from '../api/configRepo.ts'
import { GoalState, GoalStateRevision } from '../api/goalState.ts'
import { isTrue } from '../hack/story/kube.ts'
import { askMachines } from '../hack/story/machines.ts'
import { appName, goal } from '../hack/story/objects.ts'
import { pushAndBuild } from '../hack/story/push.ts'
import { commit, git, push } from '../hack/story/repositories.ts'
import { commitNext } from '../hack/story/story.ts'
import { bringUp } from './system.ts'

// timeout: 1500 s
const test = suite('whatever dies in the middle of a wave')

const perRegion = 3
const up = await bringUp(
  { regions: ['eu-west', 'us-east'], machinesPerRegion: perRegion },
  { ownServers: ['us-east'], settings: { hub: { ELECTION_LEASE: '3s' } } },
)
const { system, kube, progress } = up
const { state } = system
const { namespace } = state
const count = state.machines.length
const place = { kind: GoalState, namespace, name: appName }
const regionServer = system.regionServers.get('us-east')
const store = system.stores.get('us-east')

const build = async (message: string) => {
  const id = await commitNext(state, message)
  const artifact = await pushAndBuild({ state, cluster: kube, progress }, id)
  return { id, artifact: artifact.metadata.name }
}

/** One machine of a region after the other; `round` makes it another template. */
function wanted(artifact: string, round: number) {
  const made = goal(state, artifact)
  made.spec.activation.minHealthy = '2s'
  made.spec.activation.deadline = '60s'
  made.spec.activation.env = [{ name: 'ROUND', value: String(round) }]
  made.spec.rollout = { waves: [{ regions: ['*'], percent: 100 }], maxUnavailable: 1 }
  return made
}
const apply = (artifact: string, round: number) =>
  kube.cluster.apply(GoalState, wanted(artifact, round), { fieldManager: 'test' })
const rolledOut = (revision: number, timeoutMs = 120_000) =>
  kube.until(
    place,
    (it) => isTrue(it, 'Ready') && it.status?.effective?.revision === revision && it.status.updated === count,
    { what: `revision ${revision} is on every machine`, timeoutMs },
  )
/** Some machines have the revision, and some have not. */
const isMidWave = (revision: number) =>
  kube.until(
    place,
    ({ status = {} }) => {
      const { effective, updated = 0 } = status
      return effective?.revision === revision && updated > 0 && updated < count
    },
    { what: 'the wave is under way', timeoutMs: 60_000 },
  )

/** Refuses, says that it is ill, or says nothing for longer than a busy machine takes. One that stops as it is asked was there. */
async function isDown(url: string): Promise<boolean> {
  try {
    const signal = AbortSignal.timeout(15_000)
    return !(await fetch(`${url}/healthz`, { signal, headers: { connection: 'close' } })).ok
  } catch (error) {
    const { cause } = error as { cause?: { code?: string } }
    return cause?.code !== 'ECONNRESET' && cause?.code !== 'UND_ERR_SOCKET'
  }
}

/** The most machines of a region that were down at the same time. */
class DownWatch {
  most = 0
  readonly #stop = new AbortController()
  readonly #loop = this.#run()

  async #run() {
    while (!this.#stop.signal.aborted) {
      const isDownAt = await Promise.all(state.machines.map(({ url }) => isDown(url)))
      const down = state.machines.filter((_, at) => isDownAt[at])
      for (const { name } of state.regions)
        this.most = Math.max(this.most, down.filter(({ region }) => region === name).length)
      await delay(100)
    }
  }

  async end(): Promise<number> {
    this.#stop.abort()
    await this.#loop
    return this.most
  }
}

const first = await up.explain(() => build('First version'))
let revision = 1
await up.explain(async () => {
  const everywhere = wanted(first.artifact, 0)
  everywhere.spec.rollout = { waves: [{ regions: ['*'], percent: 100 }], maxUnavailable: perRegion }
  await kube.cluster.apply(GoalState, everywhere, { fieldManager: 'test' })
  await rolledOut(revision)
})

const [machine] = state.machines
const program = (name: string) => ({
  kill: async () => system.programs.get(name)?.kill(),
  start: () => system.startAgain(name),
})
const faults = {
  'the hub': program('hub'),
  'a region, its fleet server and tracker': program('region-us-east'),
  'an agent': program(machine?.name ?? ''),
  'the database of all': { kill: () => system.database.kill(), start: () => system.database.start() },
  'the hub’s API server': { kill: () => system.hubServer.kill(), start: () => system.hubServer.start() },
  'a region’s API server': { kill: async () => regionServer?.kill(), start: async () => regionServer?.start() },
}

for (const [what, { kill, start }] of Object.entries(faults))
  test(`${what}: no more machines are down than may be, and the wave comes to its end`, () =>
    up.explain(async () => {
      const watch = new DownWatch()
      try {
        await apply(first.artifact, ++revision)
        await isMidWave(revision)
        await kill()
        await delay(3000)
        await start()
        await rolledOut(revision)
      } finally {
        assert.ok((await watch.end()) <= 1, `${watch.most} were down at once`)
      }
    }))

test('a bucket: what its region has fetched goes on', () =>
  up.explain(async () => {
    const second = await build('Second version')
    await apply(second.artifact, ++revision)
    await isMidWave(revision)
    await store?.kill()
    await rolledOut(revision)
    await store?.start()
    for (const each of await askMachines(state.machines)) assert.is(each.version, second.id, each.name)
  }))

test('a GoalState that is deleted and applied again: machines run on, and it comes to its end', () =>
  up.explain(async () => {
    await apply(first.artifact, ++revision)
    await isMidWave(revision)
    await kube.cluster.delete(GoalState, namespace, appName)
    await kube.until(place, () => false, { what: 'it is gone', timeoutMs: 1500 }).catch(() => undefined)
    assert.is(await kube.get(place), undefined)
    for (const { healthy, name } of await askMachines(state.machines)) assert.ok(healthy, name)
    await apply(first.artifact, revision)
    const { status } = await kube.until(place, (it) => isTrue(it, 'Ready') && it.status?.updated === count, {
      what: 'it is everywhere',
      timeoutMs: 120_000,
    })
    revision = status?.effective?.revision ?? 0
  }))

test('a configuration repository that is rewritten during an undo does not redo what was undone', () =>
  up.explain(async () => {
    const third = await build('Third version')
    const { config } = state.repositories
    const merge = async (message: string, artifact: string, round: number) => {
      await writeFile(join(config.work, 'deploy', 'web.yaml'), stringify(wanted(artifact, round)))
      return commit(config, message)
    }
    const applied = (id: string) =>
      kube.until(
        { kind: ConfigRepo, namespace, name: 'config' },
        (it) => it.status?.appliedCommit === id && isTrue(it, 'Ready'),
        { what: 'the ConfigRepo applied it', timeoutMs: 30_000 },
      )
    const round = revision + 100
    const deployed = await merge('Deploy the third version', third.artifact, round)
    await push(config)
    await applied(deployed)
    await rolledOut(++revision)
    await shoal('undo', appName, '-n', namespace, '--why', 'it is slow')
    await isMidWave(++revision)
    // another history, in which the same is wanted
    await git(config.work, 'commit', '--quiet', '--amend', '--message', 'Deploy the third version, once more')
    await git(config.work, 'push', '--quiet', '--force', 'origin', 'main')
    await applied(await git(config.work, 'rev-parse', 'HEAD'))
    const undone = await kube.until(
      place,
      (it) => it.status?.lastGood?.revision === revision && it.status.updated === count,
      { what: 'it has gone back everywhere', timeoutMs: 120_000 },
    )
    assert.equal([undone.status?.rollback, undone.spec.artifactRef.name], [true, third.artifact])
    for (const { version, name } of await askMachines(state.machines)) assert.is(version, first.id, name)
    const { items } = await kube.cluster.list<GoalStateRevision>(GoalStateRevision, { namespace })
    assert.ok(items.some(({ status }) => status?.hold?.why === 'it is slow'))
  }))

async function shoal(...args: string[]): Promise<void> {
  const env = { ...process.env, KUBECONFIG: state.kubeconfig, NO_COLOR: '1' }
  await promisify(execFile)(process.execPath, [join(import.meta.dirname, '../main.ts'), ...args], { env })
}

test.after(async () => {
  await up[Symbol.asyncDispose]()
})
test.run()
