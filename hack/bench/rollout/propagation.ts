import { readFileSync } from 'node:fs'
import { dirname } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { GoalState } from '../../../api/goalState.ts'
import { mirrorLabel } from '../../../api/regionApi.ts'
import { RegionalGoalState } from '../../../api/regionalGoalState.ts'
import { Cluster } from '../../../runtime/cluster.ts'
import { generateSigningKey } from '../../../runtime/dsse.ts'
import { createLogger } from '../../../runtime/log.ts'
import { Reflector } from '../../../runtime/reflector.ts'
import { bringUp } from '../../../test/system.ts'
import { until } from '../../parts/process.ts'
import { pushAndBuild } from '../../story/push.ts'
import { commit } from '../../story/repositories.ts'
import { end, enrolAll, message, startPollers } from './crowd.ts'
import { kubectlApply, versionOf } from './deploy.ts'
import { watchFootprints } from './footprint.ts'
import { figure, percentile, row } from './rows.ts'

/** What runs for the first time is compiled. */
const warmUp = 3
const names = ['eu-west', 'eu-north', 'us-east', 'us-west', 'ap-south']

/** The whole of Shoal in five regions: how soon what `kubectl apply` changed is in each region, and at each machine. */
export async function propagation({ machines, rounds }: { machines: number; rounds: number }): Promise<void> {
  await using up = await bringUp({ regions: names })
  const { state } = up.system
  const stop = new AbortController()
  await using stack = new AsyncDisposableStack()
  stack.defer(() => stop.abort())
  const artifact = await up.explain(async () =>
    pushAndBuild({ state, cluster: up.kube, progress: up.progress }, await commit(state.repositories.app, 'First')),
  )
  const key = generateSigningKey()
  const crowds = await Promise.all(
    state.regions.map(async ({ name, fleetUrl, databaseUrl }) => {
      const some = Array.from({ length: machines / names.length }, (_, at) => `${name}-${at}`)
      await enrolAll(databaseUrl, some, key.publicKeyPem)
      const crowd = await startPollers(dirname(state.dir), {
        ...{ region: name, port: Number(new URL(fleetUrl).port), ca: readFileSync(state.hub.ca, 'utf8') },
        ...{ machineKey: key.privateKeyPem, names: some, waitMs: 15_000 },
      })
      stack.defer(() => end(crowd))
      await message(crowd, 'connected')
      return crowd
    }),
  )
  const cluster = stack.use(Cluster.load({ kubeconfig: state.kubeconfig }))
  const log = createLogger('bench', 'silent')
  const reflect = async <T extends { metadata: { name: string } }>(
    options: Pick<ConstructorParameters<typeof Reflector<T>>[0], 'resource' | 'parse' | 'selection'>,
  ) => {
    const reflector = new Reflector<T>({ cluster, log, ...options })
    void reflector.run(stop.signal)
    await reflector.synced()
    return reflector
  }
  const goals = await reflect<GoalState>({ resource: GoalState, parse: (object) => GoalState.parse(object) })
  const copies = await reflect<RegionalGoalState>({
    ...{ resource: RegionalGoalState, selection: { labelSelector: mirrorLabel } },
    parse: (object) => RegionalGoalState.parse(object),
  })
  const acceptedMs = new Map<string, number>()
  goals.onChange((_key, now, before) => {
    const { version = '' } = Object.fromEntries(now?.spec.activation.env?.map(({ name, value }) => [name, value]) ?? [])
    if (now && now.metadata.generation !== before?.metadata.generation) acceptedMs.set(version, Date.now())
  })
  const copied = new Map<number, number[]>()
  copies.onChange((_key, now, before) => {
    const revision = now?.spec.revision ?? 0
    if (revision > (before?.spec.revision ?? 0)) copied.set(revision, [...(copied.get(revision) ?? []), Date.now()])
  })

  const watched = watchFootprints(new Map([...up.system.programs].map(([name, { pid }]) => [name, pid])))
  const toRegions: number[] = []
  const toMachines: number[] = []
  for (let revision = 1; revision <= warmUp + rounds; revision++) {
    // What the round before moved has come to rest.
    await delay(1000)
    const told = crowds.map((crowd) => message(crowd, 'told', (said) => said.revision === revision))
    const taken = await kubectlApply(state, versionOf(state, artifact.metadata.name, revision))
    if (!taken) throw new Error('kubectl apply failed')
    await until('the regions have it', () => copied.get(revision)?.length === names.length, {
      timeoutMs: 30_000,
      intervalMs: 5,
    })
    const heard = await Promise.all(told)
    if (revision <= warmUp) continue
    const from = acceptedMs.get(`${revision}`) ?? Number.NaN
    toRegions.push(Math.max(...(copied.get(revision) ?? [])) - from)
    toMachines.push(...heard.flatMap(({ atMs }) => atMs).map((at) => at - from))
  }
  for (const [name, { megabytes, cores }] of watched())
    if (/^(hub|region-eu-west|worker-1)$/.test(name))
      figure(
        `${name} beside ${machines} machines in 5 regions, a deploy every 1.5 s`,
        `${Math.round(megabytes)} MB resident, ${Math.round(cores * 100)} % of a core`,
      )
  const milliseconds = (values: number[]) =>
    `half within ${Math.round(percentile(values, 0.5))} ms, 99 % within ${Math.round(percentile(values, 0.99))} ms`
  const regionsMs = percentile(toRegions, 0.99)
  row(
    `a GoalState that the API server took to the last of 5 regional copies, ${rounds} times`,
    `${milliseconds(toRegions)}; Karmada says 989 ms of itself`,
    regionsMs <= 500,
    'p99 ≤ 500 ms',
  )
  row(
    `the same to ${machines} machines, by polls held at 5 fleet servers`,
    milliseconds(toMachines),
    percentile(toMachines, 0.99) <= 2000,
    'p99 ≤ 2 s',
  )
}
