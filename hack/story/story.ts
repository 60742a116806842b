import { mkdir, rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { stringify } from 'yaml'
import { ConfigRepo } from '../../api/configRepo.ts'
import { GoalState } from '../../api/goalState.ts'
import { allUpdated, applyGoal, everyMachineRuns, ownMachines, rolledOut } from './deploy.ts'
import { isTrue } from './kube.ts'
import { askMachines, VersionWatch } from './machines.ts'
import { appName, goal } from './objects.ts'
import { pushAndBuild } from './push.ts'
import { type Report, Stopwatch } from './report.ts'
import { commit, git, push } from './repositories.ts'
import type { Stage } from './stage.ts'
import type { SystemState } from './state.ts'
import type { StoreCounts } from './storeMeter.ts'

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
  await applyGoal(stage, artifact.metadata.name)
  await rolledOut(stage, artifact.metadata.name)
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

/** Step 5: a push that does not become healthy; the fleet must go back by itself. */
async function badPush(stage: Stage, from: { good: string; goodCommit: string; watch: Stopwatch }) {
  const { state, cluster, progress } = stage
  progress.line('\n5. A second push, whose application fails its health check')
  await writeFile(join(state.repositories.app.work, 'broken'), 'This version answers 503.\n')
  const id = await commitNext(state, 'Second version, broken')
  const bad = await pushAndBuild(stage, id)
  from.watch.lap('second push, built and replicated')
  await using seen = new VersionWatch(state.machines)
  await applyGoal(stage, bad.metadata.name)
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
export async function commitNext({ repositories, shape }: SystemState, message: string | undefined): Promise<string> {
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

async function storeCounts(state: SystemState): Promise<Record<string, StoreCounts>> {
  return (await (await fetch(state.storeCountsUrl)).json()) as Record<string, StoreCounts>
}
