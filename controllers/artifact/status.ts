import type { Artifact } from '../../api/artifact.ts'
import type { ErrorCode } from '../../api/errors.ts'
import type { Replica } from '../../artifacts/replicaState.ts'
import { type Standing, setCondition, standingConditions } from '../../runtime/conditions.ts'

type Status = NonNullable<Artifact['status']>
type StatusReplica = NonNullable<Status['replicas']>[number]

/** What the status of an artifact follows from. */
export interface ArtifactView {
  artifact: Artifact
  replicas: Replica[]
  /** Every Region by name. */
  regions: Map<string, RegionView>
  /** Replication waits for a goal that names the artifact. */
  onDeploy: boolean
  nowMs: number
}

export interface RegionView {
  cordoned: boolean
  /** How long its replicator hasn't asked for work. */
  silentMs: number
}

/** A region that is silent for longer may have lost anything. */
const MAX_SILENCE_MS = 90_000

/** The status as it should be, and whether every region that counts has the artifact. */
export function artifactStatus(view: ArtifactView): { status: Status; deployable: boolean } {
  const { artifact, regions } = view
  const wanted = artifact.spec.regions.filter((name) => !regions.get(name)?.cordoned)
  const shown = artifact.spec.regions.map((name) => show(name, view))
  const lacking = shown.filter(({ region, state }) => wanted.includes(region) && state !== 'Replicated')
  const count = wanted.length - lacking.length
  const deployable = lacking.length === 0 && count > 0

  const replicated = `${count}/${wanted.length}`
  const reason = deployable ? 'AllReplicated' : reasonOf(lacking)
  const message = deployable
    ? `Replicated in ${wanted.join(', ')}.`
    : lacking.length === 0
      ? 'Every region it is for is cordoned.'
      : lacking.map((replica) => describe(replica, artifact.spec.sizeBytes)).join('; ')
  const observedGeneration = artifact.metadata.generation ?? 1
  const told = { reason, message: message.slice(0, 4096) }
  const unknown = wanted.filter((name) => !regions.has(name))
  const standing: Standing = deployable
    ? { is: 'Ready', ...told }
    : unknown.length > 0
      ? { is: 'Stalled', reason: 'RegionUnknown', message: `There is no region ${unknown.join(', ')}.` }
      : { is: 'Reconciling', ...told }
  const conditions = setCondition(
    artifact.status?.conditions ?? [],
    { type: 'Deployable', status: deployable ? 'True' : 'False', ...told, observedGeneration },
    view.nowMs,
  )
  return {
    deployable,
    status: {
      observedGeneration,
      replicated,
      replicas: shown,
      conditions: standingConditions(conditions, standing, observedGeneration, view.nowMs),
    },
  }
}

function show(region: string, view: ArtifactView): StatusReplica {
  const replica = view.replicas.find((candidate) => candidate.region === region)
  const known = view.regions.get(region)
  if (!known) return { region, state: 'Pending', message: 'There is no such region.' }
  if (!replica) {
    const message = known.cordoned
      ? 'The region is cordoned.'
      : view.onDeploy
        ? 'It is replicated when a goal names it.'
        : undefined
    return { region, state: 'Pending', ...(message && { message }) }
  }
  const silent = known.silentMs > MAX_SILENCE_MS && replica.state !== 'Pending'
  const message = silent
    ? `The region’s replicator is silent for ${Math.round(known.silentMs / 1000)} s.`
    : replica.message
  return {
    region,
    state: silent ? 'Unknown' : replica.state,
    copiedBytes: replica.copiedBytes,
    ...(replica.checkedAtMs !== null && { checkedAt: new Date(replica.checkedAtMs).toISOString() }),
    ...(message && { message: message.slice(0, 1024) }),
  }
}

/** The gravest of them. */
function reasonOf(lacking: StatusReplica[]): ErrorCode {
  const states = new Set(lacking.map((replica) => replica.state))
  if (states.has('Corrupt')) return 'ReplicaCorrupt'
  if (states.has('Missing')) return 'ReplicaMissing'
  if (states.has('Unknown')) return 'StoreUnreachable'
  return 'WaitingForReplicas'
}

function describe({ region, state, copiedBytes, message }: StatusReplica, sizeBytes: number): string {
  const share = state === 'Copying' ? ` ${Math.floor((100 * (copiedBytes ?? 0)) / sizeBytes)} %` : ''
  return `${region}: ${state}${share}${message ? ` (${message})` : ''}`
}
