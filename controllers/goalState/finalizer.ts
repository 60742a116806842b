import { GoalState } from '../../api/goalState.ts'
import type { Cluster } from '../../runtime/cluster.ts'
import type { RegionalGoals } from './regional.ts'

const finalizer = 'shoal.dev/regional-goals'
const fieldManager = 'shoal-goalstate-finalizer'

/** Regional goals are in other namespaces, where no ownerReference reaches: they are removed before the goal is. */
export async function addFinalizer(cluster: Cluster, { metadata }: GoalState): Promise<void> {
  const { name, namespace, finalizers = [] } = metadata
  if (finalizers.includes(finalizer)) return
  const object = { metadata: { name, namespace, finalizers: [finalizer] } }
  await cluster.apply(GoalState, object, { fieldManager })
}

/** Stops managing: regions are told no more, machines go on running what they run. */
export async function letGo(cluster: Cluster, regionalGoals: RegionalGoals, goal: GoalState): Promise<undefined> {
  for (const regional of regionalGoals.of(goal)) await regionalGoals.remove(regional)
  const { name, namespace, finalizers = [] } = goal.metadata
  if (!finalizers.includes(finalizer)) return
  const rest = finalizers.filter((other) => other !== finalizer)
  await cluster.patch(GoalState, { name, namespace }, { metadata: { finalizers: rest } })
  return
}
