import { mkdir, rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { stringify } from 'yaml'
import { Artifact } from '../../api/artifact.ts'
import { BuildJob } from '../../api/buildJob.ts'
import { ConfigRepo } from '../../api/configRepo.ts'
import { GoalState } from '../../api/goalState.ts'
import { isTrue, type Kube } from './kube.ts'
import { askMachines, VersionWatch } from './machines.ts'
import { appName, goal } from './objects.ts'
import type { Progress } from './progress.ts'
import { type Report, Stopwatch } from './report.ts'
import { commit, git, push } from './repositories.ts'
import type { SystemState } from './state.ts'
import type { StoreCounts } from './storeMeter.ts'

/** Where the story is played, and to whom it is told. */
export interface Stage {
  state: SystemState
  cluster: Kube
  progress: Progress
}

/** Plays the story: three pushes and their deploys, or one of the reader's own. Throws where it does not come true. */
export async function playStory(stage: Stage): Promise<Report> {
  const { state, progress } = stage
  const watch = new Stopwatch()
  progress.line(`\n1. A repository: ${state.repositories.app.bare}`)
  await clearConfig(state)
  const first = await commitNext(state, state.shape.own ? undefined : 'First version')

  progress.line(`\n2. A push of ${first.slice(0, 12)} is queued, built by one of two workers, and stored`)
  const artifact = await pushAndBuild(stage, first, watch)

  progress.line('\n4. Deployed: one machine, one region, the rest')
  const before = await storeCounts(state)
  await deploy(stage, artifact.metadata.name)
  const after = await storeCounts(state)
  await everyMachineRuns(stage, first)
  watch.lap('deploy to every machine')

  let rolledBack = false
  let last = first
  if (state.shape.own === undefined) {
    await badPush(stage, { good: artifact.metadata.name, goodCommit: first, watch })
    rolledBack = true
    last = await mergedPush(stage, watch)
  }
  const machines = state.shape.own ? await ownMachines(stage, last) : await askMachines(state.machines)
  const replicated = new Set(artifact.status?.replicas?.filter((r) => r.state === 'Replicated').map((r) => r.region))
  const regions = state.regions.map(({ name }) => {
    const bytes = (after[name]?.presignedBytes ?? 0) - (before[name]?.presignedBytes ?? 0)
    return {
      name,
      replicated: replicated.has(name),
      originCopies: Math.round((bytes / artifact.spec.sizeBytes) * 100) / 100,
    }
  })
  const ok = machines.every((m) => m.healthy && m.version === last) && regions.every((region) => region.replicated)
  return { stages: watch.stages, machines, regions, rolledBack, ok }
}

/** Steps 2 and 3: from the push to an artifact that every region has. */
async function pushAndBuild({ state, cluster, progress }: Stage, id: string, watch?: Stopwatch): Promise<Artifact> {
  const name = `${appName}-${id.slice(0, 12)}`
  const { namespace } = state
  const timeoutMs = state.shape.own ? 1_800_000 : 240_000
  const job = { kind: BuildJob, namespace, name }
  progress.line(`  $ git push origin main`)
  watch?.restart()
  await push(state.repositories.app)
  await progress.step('queued, and claimed by a worker', () =>
    cluster.until(job, (it) => phaseAfter(it, 'Running'), { what: 'the job is claimed', timeoutMs: 30_000 }),
  )
  watch?.lap('push to claim')
  await cluster.show('get', 'buildjobs')
  await progress.step('built, hashed, uploaded, read back', (say) =>
    cluster.until(job, (it) => phaseAfter(it, 'Replicating'), {
      what: 'the artifact is stored',
      timeoutMs,
      onChange: (it) => say(it.status?.phase ?? ''),
      failed: (it) => (it.status?.phase === 'Failed' ? it.status.message : undefined),
    }),
  )
  watch?.lap('build and store')
  if (watch) progress.line('\n3. Replicated to every region')
  await progress.step('copied to every region and read back there', (say) =>
    cluster.until({ kind: Artifact, namespace, name }, (it) => isTrue(it, 'Deployable'), {
      what: 'the artifact is deployable',
      timeoutMs,
      onChange: (it) => say(it.status?.replicated ?? ''),
    }),
  )
  await cluster.until(job, (it) => it.status?.phase === 'Succeeded', { what: 'the job succeeded', timeoutMs: 15_000 })
  watch?.lap('replicate')
  await cluster.show('get', 'buildjobs,artifacts')
  return Artifact.parse(await cluster.get({ kind: Artifact, namespace, name }))
}

const phases = ['Queued', 'Running', 'Replicating', 'Succeeded']
const phaseAfter = (job: BuildJob, phase: string) => phases.indexOf(job.status?.phase ?? '') >= phases.indexOf(phase)

/** Step 4: applies the GoalState and waits until every machine runs it. */
async function deploy(stage: Stage, artifact: string) {
  const { state, cluster, progress } = stage
  const manifest = goal(state, artifact)
  const file = join(state.dir, 'goal.yaml')
  await writeFile(file, stringify(manifest))
  await cluster.show('apply', '--server-side', '--force-conflicts', '-f', file)
  await rolledOut(stage, artifact)
  progress.line(`  every machine is on ${artifact}`)
}

/** Waits until the goal's rollout to `artifact` is complete, showing the waves as they go. */
async function rolledOut({ state, cluster, progress }: Stage, artifact: string) {
  let wave: string | undefined
  await progress.step(`rolling out ${artifact}`, (say) =>
    cluster.until(
      { kind: GoalState, namespace: state.namespace, name: appName },
      (it) =>
        it.status?.effective?.artifact === artifact && allUpdated(it, state.machines.length) && isTrue(it, 'Ready'),
      {
        what: `every machine runs ${artifact}`,
        timeoutMs: 180_000,
        onChange: (it) => {
          const { desired = 0, fetched = 0, healthy = 0 } = it.status ?? {}
          say(`wave ${it.status?.wave ?? '-'}, ${fetched} of ${desired} fetched, ${healthy} healthy`)
          if (it.status?.wave !== wave) {
            wave = it.status?.wave
            progress.line(`    wave ${wave ?? '-'}: ${fetched} of ${desired} fetched, ${healthy} healthy`)
          }
        },
      },
    ),
  )
  await cluster.show('get', 'goalstates')
  await cluster.show('get', 'regionalgoalstates', '--all-namespaces', '--selector', 'shoal.dev/region')
}

const allUpdated = (it: GoalState, machines: number) =>
  it.status?.updated === machines && it.status.healthy === machines

/** Step 5: a push that does not become healthy; the fleet must go back by itself. */
async function badPush(stage: Stage, from: { good: string; goodCommit: string; watch: Stopwatch }) {
  const { state, cluster, progress } = stage
  progress.line('\n5. A second push, whose application fails its health check')
  await writeFile(join(state.repositories.app.work, 'broken'), 'This version answers 503.\n')
  const id = await commitNext(state, 'Second version, broken')
  const bad = await pushAndBuild(stage, id)
  from.watch.lap('second push, built and replicated')
  await using seen = new VersionWatch(state.machines)
  const file = join(state.dir, 'goal.yaml')
  await writeFile(file, stringify(goal(state, bad.metadata.name)))
  await cluster.show('apply', '--server-side', '--force-conflicts', '-f', file)
  await progress.step('one machine fails, the rollout halts and goes back', (say) =>
    cluster.until(
      { kind: GoalState, namespace: state.namespace, name: appName },
      (it) =>
        it.status?.rollback === true &&
        it.status.effective?.artifact === from.good &&
        it.status.history?.some((h) => h.artifact === bad.metadata.name && h.outcome === 'Failed') === true &&
        allUpdated(it, state.machines.length),
      {
        what: 'the fleet is back on the first version',
        timeoutMs: 180_000,
        onChange: (it) => say(`wave ${it.status?.wave ?? '-'}, failed ${it.status?.failed ?? 0}`),
      },
    ),
  )
  await cluster.show('get', 'goalstates', '--output', 'wide')
  await everyMachineRuns(stage, from.goodCommit)
  const tried = seen.seen.get(id)?.size ?? 0
  if (tried > 1) throw new Error(`${tried} machines answered with the broken version; it was to be one at most`)
  from.watch.lap('deployed, failed, rolled back')
}

/** Step 6: a good push, deployed by merging a branch of the configuration repository. Returns its commit. */
async function mergedPush(stage: Stage, watch: Stopwatch): Promise<string> {
  const { state, cluster, progress } = stage
  progress.line('\n6. A third push, deployed by merging a branch of the configuration repository')
  await rm(join(state.repositories.app.work, 'broken'))
  const id = await commitNext(state, 'Third version')
  const artifact = await pushAndBuild(stage, id)
  watch.lap('third push, built and replicated')
  const { config } = state.repositories
  const branch = `deploy-${id.slice(0, 12)}`
  await git(config.work, 'switch', '--quiet', '--create', branch)
  await mkdir(join(config.work, 'deploy'), { recursive: true })
  await writeFile(join(config.work, 'deploy', 'web.yaml'), stringify(goal(state, artifact.metadata.name)))
  await commit(config, `Deploy ${artifact.metadata.name}`)
  await git(config.work, 'switch', '--quiet', 'main')
  progress.line(`  $ git merge --no-ff ${branch} && git push origin main`)
  await git(config.work, 'merge', '--quiet', '--no-ff', '--message', `Merge ${branch}`, branch)
  await push(config)
  const merged = await git(config.work, 'rev-parse', 'HEAD')
  await progress.step('the merged commit is applied', () =>
    cluster.until(
      { kind: ConfigRepo, namespace: state.namespace, name: 'config' },
      (it) => it.status?.appliedCommit === merged && isTrue(it, 'Ready'),
      { what: 'the ConfigRepo applied the merge', timeoutMs: 30_000 },
    ),
  )
  await cluster.show('get', 'configrepos')
  await rolledOut(stage, artifact.metadata.name)
  await everyMachineRuns(stage, id)
  watch.lap('merged and deployed')
  return id
}

/** The next commit of the application, or the reader's own as it is. */
async function commitNext({ repositories, shape }: SystemState, message: string | undefined): Promise<string> {
  const { app } = repositories
  if (shape.own !== undefined || message === undefined) return git(app.work, 'rev-parse', 'HEAD')
  await writeFile(join(app.work, 'VERSION'), `${message}, ${new Date().toISOString()}\n`)
  await rm(join(app.work, message.includes('broken') ? 'nothing' : 'broken'), { force: true })
  return commit(app, message)
}

/** Takes an earlier story's deployment out of the configuration repository, so that it is not deployed again. */
async function clearConfig({ repositories: { config } }: SystemState) {
  if ((await git(config.work, 'ls-files', 'deploy/web.yaml')) === '') return
  await git(config.work, 'rm', '--quiet', 'deploy/web.yaml')
  await writeFile(join(config.work, 'deploy', '.gitkeep'), '')
  await commit(config, 'Deploy by hand')
  await push(config)
}

/** Asks every machine over HTTP; the rollout is only as true as what they answer. */
async function everyMachineRuns({ state, progress }: Stage, id: string) {
  if (state.shape.own) return
  const deadline = Date.now() + 10_000
  for (;;) {
    const machines = await askMachines(state.machines)
    const wrong = machines.filter((machine) => machine.version !== id || !machine.healthy)
    if (wrong.length === 0) break
    if (Date.now() > deadline) {
      const list = wrong.map((machine) => `${machine.name}: ${machine.version || 'no answer'}`).join(', ')
      throw new Error(`not every machine answers with ${id.slice(0, 12)}: ${list}`)
    }
    await delay(200)
  }
  progress.line(`  every machine's /version answers ${id.slice(0, 12)}`)
}

/** The reader's application may not speak HTTP: what it runs is what its agent reported to the region. */
async function ownMachines({ state, cluster }: Stage, id: string): Promise<Report['machines']> {
  const it = GoalState.parse(await cluster.get({ kind: GoalState, namespace: state.namespace, name: appName }))
  const all = allUpdated(it, state.machines.length)
  return state.machines.map(({ name, region }) => ({ name, region, version: all ? id : '', healthy: all }))
}

async function storeCounts(state: SystemState): Promise<Record<string, StoreCounts>> {
  return (await (await fetch(state.storeCountsUrl)).json()) as Record<string, StoreCounts>
}
