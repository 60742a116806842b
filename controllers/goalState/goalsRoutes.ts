import { Artifact } from '../../api/artifact.ts'
import { ShoalError } from '../../api/errors.ts'
import { GoalState } from '../../api/goalState.ts'
import { deployRequest, type GoalSummary, type GoalsAnswer } from '../../api/goalsApi.ts'
import { type Access, authorize } from '../../runtime/access.ts'
import { bearerToken, type Server } from '../../runtime/server.ts'

export interface GoalsRoutesOptions extends Access {
  goals: () => GoalState[]
  artifacts: () => Artifact[]
}

const newestArtifacts = 100

/** /v1/goals/<namespace> (api/goalsApi.ts): what is being rolled out, and deploying by a button. Any replica answers. */
export function registerGoalsRoutes(server: Server, options: GoalsRoutesOptions): void {
  server.get<{ Params: { namespace: string } }>('/v1/goals/:namespace', async (request): Promise<GoalsAnswer> => {
    const { namespace } = request.params
    for (const { plural } of [GoalState, Artifact])
      await authorize(options, request, { verb: 'list', resource: plural, namespace })
    const isHere = ({ metadata }: GoalState | Artifact) => metadata.namespace === namespace
    const goals = options.goals().filter(isHere).map(summaryOf)
    const artifacts = options.artifacts().filter(isHere).sort(newestFirst).slice(0, newestArtifacts)
    return {
      goals: goals.sort((a, b) => (a.name < b.name ? -1 : 1)),
      artifacts: artifacts.map(({ metadata, status }) => ({
        name: metadata.name,
        deployable: status?.conditions?.some(({ type, status }) => type === 'Deployable' && status === 'True') ?? false,
      })),
    }
  })

  server.post<{ Params: { namespace: string; name: string } }>(
    '/v1/goals/:namespace/:name/deploy',
    async (request): Promise<object> => {
      const { namespace, name } = request.params
      const { artifact } = deployRequest.parse(request.body)
      // As the caller: rights, admission and the API server's audit are those of kubectl.
      await using own = options.cluster.as(bearerToken(request.headers))
      if (!(await own.get(Artifact, namespace, artifact)))
        throw new ShoalError('NotFound', `there is no Artifact ${artifact} in namespace ${namespace}`)
      await own.patch(GoalState, { namespace, name }, { spec: { artifactRef: { name: artifact } } })
      return {}
    },
  )
}

function summaryOf({ metadata, spec, status }: GoalState): GoalSummary {
  const { effective, wave, desired = 0, healthy = 0, failed = 0, conditions = [] } = status ?? {}
  const holding = ['Stalled', 'Reconciling', 'Ready'].flatMap((type) =>
    conditions.filter((condition) => condition.type === type && condition.status === 'True'),
  )[0]
  return {
    ...{ name: metadata.name, artifact: spec.artifactRef.name, effective: effective?.artifact, wave },
    ...{ desired, healthy, failed, reason: holding?.reason, message: holding?.message },
  }
}

const newestFirst = (a: Artifact, b: Artifact): number => (createdAt(a) < createdAt(b) ? 1 : -1)
const createdAt = ({ metadata }: Artifact): string => metadata.creationTimestamp ?? ''
