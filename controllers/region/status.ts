import type { Region } from '../../api/region.ts'
import { type Standing, standingConditions } from '../../runtime/conditions.ts'

interface StandingFacts {
  region: Region
  /** Names of all regions that say they are home. */
  homes: string[]
  /** How long the region's replicator hasn't asked for work; undefined: it never did. */
  silentMs: number | undefined
}

/** A replicator asks every half second. */
const MAX_SILENCE_MS = 60_000

/** Where a region stands. Without exactly one home there is nowhere to upload to, so that stalls every region. */
function standingOf({ region, homes, silentMs }: StandingFacts): Standing {
  if (homes.length !== 1) {
    const message =
      homes.length === 0
        ? 'No region is home; exactly one has to be.'
        : `${homes.join(', ')} are all home; exactly one has to be.`
    return { is: 'Stalled', reason: 'ConfigInvalid', message }
  }
  if (silentMs === undefined)
    return { is: 'Reconciling', reason: 'RegionSilent', message: 'The region has not asked for work yet.' }
  if (silentMs > MAX_SILENCE_MS)
    return { is: 'Reconciling', reason: 'RegionSilent', message: 'The region’s replicator asks for no work.' }
  const message = region.spec.cordoned ? 'The region is cordoned.' : 'The region asks for work.'
  return { is: 'Ready', reason: region.spec.cordoned ? 'Cordoned' : 'Serving', message }
}

/** The status of a region. */
export function regionStatus(facts: StandingFacts, machines: number, nowMs: number): NonNullable<Region['status']> {
  const { region } = facts
  const observedGeneration = region.metadata.generation ?? 1
  return {
    observedGeneration,
    machines,
    conditions: standingConditions(region.status?.conditions ?? [], standingOf(facts), observedGeneration, nowMs),
  }
}
