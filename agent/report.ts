import type { GoalReport, MachineState } from '../api/fleetApi.ts'
import type { GoalPayload } from '../rollout/envelope.ts'
import { goalKey, type Refusal } from './goals.ts'
import type { PlaceStatus } from './supervisor/protocol.ts'

/** An accepted application may be down so long (a restart) before its machine counts as failed. */
const unhealthyAfterMs = 10_000

/** What is known of a goal's release. */
export interface FetchProgress {
  /** Effective and previous release are on disk. */
  fetched: boolean
  started: boolean
  fetchedBytes: number
  /** How long it took; undefined before it is all there. */
  fetchMs: number | undefined
  problem: { reason: string; message: string } | undefined
}

/** A grant that could not even be handed to the supervisor. */
export interface HandOver {
  grantId: string
  uid: string
  revision: number
  message: string
}

interface Situation {
  goal: GoalPayload
  progress: FetchProgress
  place: PlaceStatus | undefined
  refusal: Refusal | undefined
  handOver: HandOver | undefined
}

type Standing = { state: MachineState } & Partial<Pick<GoalReport, 'grantId' | 'reason' | 'message'>>

/** How far this machine is with a goal it holds. */
export function reportGoal(situation: Situation): GoalReport {
  const { goal, progress, place, refusal } = situation
  const standing = judge(situation)
  return {
    namespace: goal.namespace,
    name: goal.name,
    sequence: goal.sequence,
    revision: goal.revision,
    template: goal.templateHash,
    fetchedBytes: progress.fetchedBytes,
    sizeBytes: goal.template.artifact.sizeBytes,
    ...(progress.fetchMs !== undefined && { fetchMs: progress.fetchMs }),
    ...(place?.running !== undefined && { running: place.running }),
    ...(refusal && { reason: refusal.reason, message: refusal.message }),
    ...standing,
  }
}

function judge({ goal, progress, place, handOver }: Situation): Standing {
  const { activating, outcome, accepted, running, unhealthyForMs = 0 } = place ?? {}
  const sameLife = outcome?.uid === undefined || outcome.uid === goal.uid
  const isOurs = outcome?.goal === goalKey(goal) && sameLife && outcome.revision === goal.revision
  const ours = isOurs ? outcome : undefined
  const grant = ours && { grantId: ours.id }
  // also of what an earlier revision allowed: it is down meanwhile
  if (activating) return { state: 'Activating', grantId: activating.id }
  if (running === goal.templateHash) return { state: 'Healthy', ...grant }
  if (handOver?.revision === goal.revision && handOver.uid === goal.uid)
    return { state: 'Failed', grantId: handOver.grantId, reason: 'ActivationFailed', message: handOver.message }
  if (ours && ours.result !== 'Healthy' && ours.template === goal.templateHash) {
    const failure = { reason: 'ActivationFailed', message: ours.message ?? '' }
    if (ours.result !== 'Interrupted') return { state: ours.result, ...grant, ...failure }
    if (progress.fetched) return { state: 'Fetched', ...grant, ...failure }
  }
  if (accepted?.template === goal.templateHash) {
    if (unhealthyForMs < unhealthyAfterMs) return { state: 'Activating', ...grant }
    return { state: 'Failed', ...grant, reason: 'ActivationFailed', message: 'the application is not healthy any more' }
  }
  if (progress.fetched) return { state: 'Fetched' }
  return { state: progress.started ? 'Fetching' : 'Waiting', ...progress.problem }
}

/** A goal that was sent and is not held: the fleet learns why. */
export const reportRefusal = ({ namespace, name, reason, message }: Refusal): GoalReport => ({
  namespace,
  name,
  sequence: 0,
  revision: 0,
  template: '',
  state: 'Waiting',
  reason,
  message,
})
