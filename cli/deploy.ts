import type { Command } from 'commander'
import { Artifact } from '../api/artifact.ts'
import { type FetchAnswer, fetchAnswer } from '../api/artifactApi.ts'
import { ShoalError } from '../api/errors.ts'
import { GoalState, type Wave } from '../api/goalState.ts'
import { durationMs, type IntOrPercent, resolveCount } from '../api/meta.ts'
import { fallbackOf } from '../rollout/effective.ts'
import { type PlannedStep, planOf, wavesOf } from '../rollout/plan.ts'
import { Cluster } from '../runtime/cluster.ts'
import { type HubOptions, openApi, withHub } from './hub.ts'
import { currentNamespace, loadKubeConfig } from './kubeconfig.ts'
import { lineOf, size, span, widthsOf } from './table.ts'

interface Options extends HubOptions {
  dryRun?: boolean
}

/** `shoal deploy GOAL ARTIFACT`: as setting spec.artifactRef, with the rights of whoever the kubeconfig says. */
export function addDeploy(program: Command): void {
  const command = program
    .command('deploy <goal> <artifact>')
    .description('roll out an artifact by a GoalState that is there')
    .option('-n, --namespace <name>', 'of both; default: the kubeconfig’s')
    .option('--dry-run', 'change nothing, show the plan: machines by wave and region, and with --hub what they fetch')
  withHub(command).action(async (goalName: string, artifactName: string, options: Options) => {
    const kubeconfig = loadKubeConfig()
    const namespace = options.namespace ?? currentNamespace(kubeconfig)
    await using cluster = Cluster.load({ kubeconfig })
    const [foundGoal, foundArtifact] = await Promise.all([
      cluster.get(GoalState, namespace, goalName),
      cluster.get(Artifact, namespace, artifactName),
    ])
    const missing = foundGoal ? `Artifact ${artifactName}` : `GoalState ${goalName}`
    if (!foundGoal || !foundArtifact)
      throw new ShoalError('NotFound', `there is no ${missing} in namespace ${namespace}`)
    const goal = GoalState.parse(foundGoal)
    const artifact = Artifact.parse(foundArtifact)
    if (options.dryRun) {
      const releases = onDiskOf(goal)
      showPlan(goal, artifact, { releases, fetch: await fetchOf(artifact, releases, options) })
      return
    }
    const body = { spec: { artifactRef: { name: artifactName } } }
    await cluster.patch(GoalState, { namespace, name: goalName }, body)
    console.log(
      `${goalName} rolls out ${artifactName}; kubectl get goal ${goalName} -n ${namespace} -w shows how far it is`,
    )
  })
}

/** Stopping the old one and starting the new, for an application that does neither slowly. */
const switchMs = 5000
/** A machine's link, for as long as nobody measured it: 1 Gbit/s. All fetch side by side, before the first wave. */
const linkBytesPerSecond = 125e6

/** Regions of a wave go side by side; in a region so many machines at once as may be down. */
function expectedMs(o: {
  waves: Wave[]
  regions: { name: string; desired: number }[]
  maxUnavailable: IntOrPercent
  activation: GoalState['spec']['activation']
}): number {
  const stepMs = durationMs(o.activation.minHealthy) + switchMs
  const steps = Map.groupBy(planOf(o.waves, o.regions), ({ wave }) => wave)
  const stepsOf = ({ changes, desired }: PlannedStep) =>
    Math.ceil(changes / Math.max(1, resolveCount(o.maxUnavailable, desired)))
  const changingMs = [...steps.values()].map((wave) => Math.max(...wave.map(stepsOf)) * stepMs)
  const soakingMs = o.waves.map(({ soak }) => durationMs(soak))
  return [...changingMs, ...soakingMs].reduce((sum, ms) => sum + ms, 0)
}

/** The releases that machines have: the one that runs, and the one to go back to. */
function onDiskOf({ status }: GoalState): string[] {
  const { effective } = status ?? {}
  return [
    ...new Set(
      [effective, fallbackOf(status ?? {}, effective?.template)].flatMap((each) => (each ? [each.artifact] : [])),
    ),
  ]
}

/** What a machine with these releases fetches, when it is said which hub to ask. */
async function fetchOf(
  { metadata }: Artifact,
  releases: string[],
  { hub, ca }: HubOptions,
): Promise<FetchAnswer | undefined> {
  if (hub === undefined) return undefined
  await using client = openApi({ url: hub, ca })
  const path = ['/v1/artifacts', metadata.namespace ?? '', metadata.name, 'fetch'].join('/')
  return await client.request('GET', `${path}?${new URLSearchParams({ onDisk: releases.join() })}`, {
    schema: fetchAnswer,
  })
}

interface ToFetch {
  releases: string[]
  fetch: FetchAnswer | undefined
}

/** What is to be moved, to all machines. */
function movedBy({ metadata, spec }: Artifact, machines: number, { releases, fetch }: ToFetch): string {
  const whole = `${metadata.name}: ${size(spec.sizeBytes)}`
  if (!fetch)
    return `${whole} to each of ${machines} machines at most, less what is on disk; --hub tells how much that is`
  const each = size(fetch.fetchBytes)
  const lacking = releases.length > 0 ? `, of which ${each} is not in ${releases.join(' and ')}` : ''
  return `${whole}${lacking}: ${size(fetch.fetchBytes * machines)} to ${machines} machines`
}

function showPlan({ metadata, spec, status }: GoalState, artifact: Artifact, toFetch: ToFetch): void {
  const { maxUnavailable } = spec.rollout
  const regions = (status?.regions ?? []).map(({ name, desired }) => ({ name, desired }))
  if (regions.length === 0)
    throw new ShoalError('Conflict', `nothing of ${metadata.name} was rolled out yet: its machines are not known`)
  const waves = wavesOf(
    spec.rollout,
    regions.map(({ name }) => name),
  )
  const lines = [
    ['WAVE', 'REGION', 'CHANGES', 'THEN', 'AT ONCE', 'THEN WAITS FOR'],
    ...planOf(waves, regions).map(({ wave, region, changes, of, desired }) => {
      const { soak = '0s' } = waves[wave - 1] ?? {}
      const waits = [durationMs(soak) > 0 ? `soak ${soak}` : '', waves[wave]?.approval ? 'approval' : '']
      const atOnce = Math.min(changes, Math.max(1, resolveCount(maxUnavailable, desired)))
      return [wave, region, changes, `${of} of ${desired}`, atOnce, waits.filter(Boolean).join(', ')].map(String)
    }),
  ]
  const tookMs = expectedMs({ waves, regions, maxUnavailable, activation: spec.activation })
  const widths = widthsOf(lines)
  for (const line of lines) console.log(lineOf(line, widths))
  const machines = regions.reduce((sum, { desired }) => sum + desired, 0)
  const soaksMs = waves.reduce((sum, { soak }) => sum + durationMs(soak), 0)
  const lacking = (artifact.status?.replicas ?? []).filter(({ state }) => state !== 'Replicated')
  console.log(`${movedBy(artifact, machines, toFetch)}; soaks ${span(soaksMs)} in all`)
  const fetchMs = (1000 * (toFetch.fetch?.fetchBytes ?? artifact.spec.sizeBytes)) / linkBytesPerSecond
  console.log(
    `expected: ${span(fetchMs + tookMs)}, of which ${span(fetchMs)} to fetch it at 1 Gbit/s, if each step of a wave takes minHealthy and ${switchMs / 1000} s to switch`,
  )
  if (lacking.length > 0) console.log(`it begins once it is in ${lacking.map(({ region }) => region).join(', ')}`)
}
