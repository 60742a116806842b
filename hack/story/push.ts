import { Artifact } from '../../api/artifact.ts'
import { BuildJob } from '../../api/buildJob.ts'
import { isTrue } from './kube.ts'
import { appName } from './objects.ts'
import type { Stopwatch } from './report.ts'
import { push } from './repositories.ts'
import type { Stage } from './stage.ts'

/** Steps 2 and 3: from the push to an artifact that every region has. */
export async function pushAndBuild(
  { state, cluster, progress }: Stage,
  id: string,
  watch?: Stopwatch,
): Promise<Artifact> {
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
