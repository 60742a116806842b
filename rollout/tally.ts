import type { MachineState } from '../api/fleetApi.ts'
import type { MachineCounts } from '../api/goalState.ts'
import { judgeSilence } from './silence.ts'

/** What is known of machines that a goal selects; those of whom the same is known may be one entry. */
export interface Known {
  machines: number
  /** What they reported last, of whichever goal they had then. */
  state: MachineState
  /** They run the goal's template. */
  runs: boolean
  /** What they reported is of the goal's template. */
  ofTemplate: boolean
  /** What they reported is of the goal's revision. */
  ofRevision: boolean
  /** `Unresolved`: it is over, and it is not known how it ended, or whether it began. */
  granted: 'None' | 'Open' | 'Unresolved'
  /** The grant is for the goal's template. */
  grantOfTemplate: boolean
  /** The grant is of the goal's revision. */
  grantOfRevision: boolean
  /** `NotYet`: a server that is young has not heard them. `LatelySilent`: since `latelyMs` at most. */
  heard: 'Heard' | 'LatelySilent' | 'Silent' | 'NotYet'
}

export interface Tally extends MachineCounts {
  /** Machines that an open grant, an activation or its failure keeps from serving. */
  unavailable: number
  /** Machines that run the template, or may begin to; but for the silent, whose place others take. */
  updatedOrGranted: number
  /** So many fell silent at once that nothing is known of the release; never under one that is trusted. */
  manySilent: boolean
}

/**
 * A region's machines, counted for a goal. Who does not come back from an activation costs budget until it is silent. Then
 * silence.ts says whether it was the release: who fell silent before it was allowed to change is unreachable, who did after
 * it has failed, and goes on costing budget. Under a template that is trusted nobody has failed by being silent: going back
 * does not wait for the dead. What an earlier revision allowed a machine counts too: it may not have heard of this one yet.
 * So does, for a young server, every machine that it has not heard yet: a database may have been put back as it was before
 * some were granted.
 */
export function tally(known: Iterable<Known>, { trusted }: { trusted: boolean }): Tally {
  const counts = { desired: 0, fetched: 0, updated: 0, healthy: 0, failed: 0, unavailable: 0, updatedOrGranted: 0 }
  const changed = { machines: 0, silent: 0 }
  const unchanged = { machines: 0, silent: 0 }
  let lately = 0
  for (const is of known) {
    const { machines, state, runs, granted } = is
    const silent = is.heard === 'Silent' || is.heard === 'LatelySilent'
    const saysFailed = (state === 'Failed' || state === 'RolledBack') && is.ofTemplate && is.ofRevision
    // It runs the template, and has heard of this revision: it was there during this rollout.
    const hasChanged = runs && is.ofRevision && !saysFailed
    const waited = silent && is.grantOfRevision && !saysFailed && !hasChanged
    const lost = waited && granted === 'Unresolved'
    const mayBeDown = state === 'Activating' || state === 'Failed' || granted === 'Unresolved'
    const mayRun = is.grantOfTemplate && granted !== 'None'
    const mayHaveMoved = (granted === 'Open' && mayRun) || ((runs || mayRun) && !silent) || is.heard === 'NotYet'
    counts.desired += machines
    if (runs || (is.ofTemplate && state !== 'Waiting' && state !== 'Fetching')) counts.fetched += machines
    if (runs) counts.updated += machines
    if (runs && is.ofTemplate && state === 'Healthy' && !silent) counts.healthy += machines
    if (saysFailed) counts.failed += machines
    if (granted === 'Open' || (mayBeDown && (!silent || (saysFailed && !trusted))) || is.heard === 'NotYet')
      counts.unavailable += machines
    if (mayHaveMoved) counts.updatedOrGranted += machines
    const side = runs || lost ? changed : unchanged
    side.machines += machines
    if (is.heard === 'LatelySilent') lately += machines
    if ((silent && hasChanged) || lost) changed.silent += machines
    else if (silent && !saysFailed && !(waited && granted === 'Open')) unchanged.silent += machines
  }
  const judged = judgeSilence({ changed, unchanged, lately })
  // Who falls silent under what is known to work is only out of reach.
  const failed = trusted ? 0 : judged.failed
  return {
    ...counts,
    failed: counts.failed + failed,
    unavailable: counts.unavailable + failed,
    unreachable: unchanged.silent + changed.silent - failed,
    manySilent: judged.many && !trusted,
  }
}
