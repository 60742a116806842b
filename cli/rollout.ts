import type { Command } from 'commander'
import { ShoalError } from '../api/errors.ts'
import { GoalState, GoalStateRevision } from '../api/goalState.ts'
import { fallbackOf } from '../rollout/effective.ts'
import { wavesOf } from '../rollout/plan.ts'
import { say, type Word } from '../rollout/words.ts'
import { ApiError, Cluster } from '../runtime/cluster.ts'
import { currentNamespace, loadKubeConfig } from './kubeconfig.ts'
import { atLeastOne } from './number.ts'

interface Options {
  namespace?: string
  why: string
  to?: number
  wave?: number
}

interface Target {
  goal: GoalState
  /** Of the goal, oldest first. */
  revisions: GoalStateRevision[]
  /** The revision that machines are told to run. */
  effective: GoalStateRevision
}

type Said = Pick<Word, 'verb' | 'wave' | 'to'>

interface Deed {
  /** Of which revisions, and what is answered when it is said. @throws ShoalError when it can't be said now. */
  plan(target: Target, options: Options): { of: GoalStateRevision[]; word: Said; answer: string }
}

/** Commands by which people steer a rollout. What they say is kept on the goal's revisions, not in its spec. */
export function addRollout(program: Command): void {
  const add = (name: string, description: string, deed: Deed, o: { why: 'asked' | 'may be given' }) => {
    const command = program
      .command(`${name} <goal>`)
      .description(description)
      .option('-n, --namespace <name>', 'of the goal; default: the kubeconfig’s')
    if (o.why === 'asked') command.requiredOption('--why <text>', 'kept with your name')
    else command.option('--why <text>', 'kept with your name', name)
    return command.action((goal: string, options: Options) => run(goal, options, deed))
  }
  add('pause', 'change no machine until it is resumed; what began goes on to its end', pause, { why: 'asked' })
  add('resume', 'go on where it was paused', resume, { why: 'may be given' })
  add('promote', 'skip the rest of the current wave’s soak', promote, { why: 'may be given' })
  add('approve', 'let a wave begin that waits for approval; takes the verb approve on goalstates', approve, {
    why: 'may be given',
  }).option('--wave <n>', 'counted from 1; default: the one that waits', atLeastOne)
  add('abort', 'stop a rollout and go back to what worked', abort, { why: 'asked' })
  add('undo', 'go back from a release that was rolled out; the spec stays, and is not rolled out again', undo, {
    why: 'asked',
  }).option('--to <revision>', 'default: the last other one that worked', atLeastOne)
  add('release', 'end a hold: what the spec says is rolled out again', release, { why: 'may be given' }).alias('retry')
}

const same = (revisions: GoalStateRevision[], { spec }: GoalStateRevision) =>
  revisions.filter((each) => each.spec.hash === spec.hash)
const conflict = (message: string) => new ShoalError('Conflict', message)

const pause: Deed = {
  plan({ goal, effective }) {
    if (effective.status?.pause)
      throw conflict(`${goal.metadata.name} is paused already, by ${effective.status.pause.by}`)
    return { of: [effective], word: { verb: 'Pause' }, answer: 'is paused' }
  },
}

const resume: Deed = {
  plan({ goal, effective }) {
    if (!effective.status?.pause) throw conflict(`${goal.metadata.name} is not paused`)
    return { of: [effective], word: { verb: 'Resume' }, answer: 'goes on' }
  },
}

const promote: Deed = {
  plan({ goal, effective }) {
    const wave = currentWave(goal)
    return { of: [effective], word: { verb: 'Promote', wave }, answer: `does not soak after wave ${wave}` }
  },
}

const approve: Deed = {
  plan({ goal, effective }, { wave = currentWave(goal) }) {
    const waves = wavesIn(goal)
    const wanted = waves[wave - 1]
    if (!wanted) throw new ShoalError('Invalid', `${goal.metadata.name} has ${waves.length} waves`)
    if (!wanted.approval) throw conflict(`wave ${wave} of ${goal.metadata.name} needs no approval`)
    return { of: [effective], word: { verb: 'Approve', wave }, answer: `may begin wave ${wave}` }
  },
}

const abort: Deed = {
  plan({ goal, revisions, effective }) {
    const { rollback, wave = '' } = goal.status ?? {}
    const outcome = goal.status?.history?.find(({ revision }) => revision === effective.spec.revision)?.outcome
    if (rollback) throw conflict(`${goal.metadata.name} goes back already`)
    if (outcome !== 'InProgress')
      throw conflict(`nothing of ${goal.metadata.name} is being rolled out; shoal undo goes back from what is`)
    const answer = `is stopped in wave ${wave}, and goes back to ${goal.status?.lastGood?.artifact ?? 'nothing: it stays'}`
    return { of: same(revisions, effective), word: { verb: 'Hold' }, answer }
  },
}

const undo: Deed = {
  plan({ goal, revisions, effective }, { to }) {
    const target = to === undefined ? undefined : revisions.find(({ spec }) => spec.revision === to)
    if (to !== undefined && !target) throw new ShoalError('NotFound', `${goal.metadata.name} has no revision ${to}`)
    if (target?.spec.hash === effective.spec.hash) throw conflict(`${goal.metadata.name} runs revision ${to} already`)
    if (target?.status?.hold)
      throw conflict(`revision ${to} is held by ${target.status.hold.by}: ${target.status.hold.why}`)
    const fallback = fallbackOf(goal.status ?? {}, effective.spec.hash)?.artifact
    const artifact = target?.spec.template.artifactRef.name ?? fallback
    if (artifact === undefined) throw conflict(`no other release of ${goal.metadata.name} has worked yet`)
    return { of: same(revisions, effective), word: { verb: 'Hold', to }, answer: `goes back to ${artifact}` }
  },
}

const release: Deed = {
  plan({ goal, revisions }) {
    const { name } = goal.spec.artifactRef
    const held = revisions.filter(({ spec, status }) => status?.hold && spec.template.artifactRef.name === name)
    if (held.length === 0) throw conflict(`${name}, which ${goal.metadata.name} names, is not held`)
    return { of: held, word: { verb: 'Release' }, answer: `rolls out ${name} again` }
  },
}

const wavesIn = ({ spec, status }: GoalState) => wavesOf(spec.rollout, status?.regionsInRollout ?? [])

function currentWave(goal: GoalState): number {
  const wave = (goal.status?.waveIndex ?? 0) + 1
  if (wave > wavesIn(goal).length) throw conflict(`every wave of ${goal.metadata.name} is complete`)
  return wave
}

async function run(name: string, options: Options, deed: Deed): Promise<void> {
  const kubeconfig = loadKubeConfig()
  const namespace = options.namespace ?? currentNamespace(kubeconfig)
  await using cluster = Cluster.load({ kubeconfig })
  const { of, word, answer } = deed.plan(await read(cluster, namespace, name), options)
  const by = await whoAmI(cluster)
  const at = new Date().toISOString()
  for (const revision of of) {
    const target = { namespace, name: revision.metadata.name, subresource: 'status' as const }
    await cluster
      .patch(GoalStateRevision, target, say(revision, { ...word, by, at, why: options.why }))
      .catch((error: unknown) => {
        if (error instanceof ApiError && (error.status === 403 || error.status === 422))
          throw new ShoalError('Forbidden', error.message)
        throw error
      })
  }
  console.log(`${name} ${answer}`)
}

async function read(cluster: Cluster, namespace: string, name: string): Promise<Target> {
  const object = await cluster.get(GoalState, namespace, name)
  if (!object) throw new ShoalError('NotFound', `there is no GoalState ${name} in namespace ${namespace}`)
  const goal = GoalState.parse(object)
  const { items } = await cluster.list(GoalStateRevision, { namespace, fieldSelector: `spec.goalRef=${name}` })
  const revisions = items.map((each) => GoalStateRevision.parse(each)).sort((a, b) => a.spec.revision - b.spec.revision)
  const effective = revisions.find(({ spec }) => spec.revision === goal.status?.effective?.revision)
  if (!effective) throw conflict(`nothing of ${name} was rolled out yet`)
  return { goal, revisions, effective }
}

/** The name the API server knows the caller by. */
async function whoAmI(cluster: Cluster): Promise<string> {
  const review = await cluster.raw<{ status: { userInfo: { username: string } } }>(
    'POST',
    '/apis/authentication.k8s.io/v1/selfsubjectreviews',
    { body: { apiVersion: 'authentication.k8s.io/v1', kind: 'SelfSubjectReview' } },
  )
  return review.status.userInfo.username
}
