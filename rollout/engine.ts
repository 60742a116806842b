import type { MachineCounts, Rollout } from '../api/goalState.ts'
import { durationMs, resolveCount } from '../api/meta.ts'
import { covers, targetCount, targetOf } from './plan.ts'

/** Where a rollout stands; kept in the GoalState's status, so that any hub goes on from it. */
export interface Progress {
  /** The current wave; `waves.length` when all are complete. */
  waveIndex: number
  /** How long the current wave has soaked. */
  soakedMs: number
  /** When the rollout last came forward, Unix ms. */
  progressedAtMs: number
  /** Machines fetched and healthy then. */
  reached: number
}

/** What a region last reported of this revision; without `counts` it has not reported yet. */
export interface RegionReport {
  region: string
  counts: MachineCounts | undefined
  /** The report is recent, and made after the current target was known there. */
  fresh: boolean
  /** The region halted by itself. */
  halted: boolean
}

export type Verdict =
  | { is: 'Progressing'; message: string }
  | { is: 'Soaking'; message: string }
  /** No way forward was found for progressDeadline; it goes on trying. */
  | { is: 'Late'; message: string }
  | { is: 'Failed'; message: string }
  | { is: 'Complete'; message: string }

/** Few machines say nothing about a share: until so many are updated, any failure halts. */
const smallRollout = 50

/**
 * One step of a rollout. `elapsedMs` is the time since the last step during which this engine was able to act: soak
 * counts only that, so an outage never counts as time in which all was well. `unseen` are regions of the wave whose copy
 * of the artifact is being looked at once more; they are told to wait.
 */
export function advance(
  rollout: Pick<Rollout, 'waves' | 'failureThreshold' | 'progressDeadline'>,
  progress: Progress,
  view: { reports: RegionReport[]; unseen?: string[]; nowMs: number; elapsedMs: number },
): { progress: Progress; verdict: Verdict } {
  const { reports, unseen = [], nowMs, elapsedMs } = view
  const failure = failureOf(rollout, reports)
  if (failure !== undefined) return { progress, verdict: { is: 'Failed', message: failure } }
  const wave = rollout.waves[progress.waveIndex]
  if (!wave) return { progress, verdict: { is: 'Complete', message: 'every wave is complete' } }

  const reached = sum(reports, ({ fetched, healthy }) => fetched + healthy)
  const forward = reached > progress.reached
  const next = { ...progress, reached, ...(forward && { progressedAtMs: nowMs }) }
  const name = `wave ${progress.waveIndex + 1} of ${rollout.waves.length}`
  const lacking = reports
    .filter(({ region }) => covers(wave, region))
    .find((report) => !isComplete(report, rollout, progress))
  if (lacking) {
    const looked = unseen.length > 0 ? `; looking at the copy in ${unseen.join(', ')} once more` : ''
    const message = `${name}: ${missing(lacking, rollout, progress)}${looked}`
    // What soaked must stay healthy throughout.
    const waiting = { ...next, soakedMs: 0 }
    const late = nowMs - waiting.progressedAtMs > durationMs(rollout.progressDeadline)
    return { progress: waiting, verdict: { is: late ? 'Late' : 'Progressing', message } }
  }
  const soakMs = durationMs(wave.soak)
  const soakedMs = progress.soakedMs + elapsedMs
  if (soakedMs < soakMs) {
    const left = Math.ceil((soakMs - soakedMs) / 1000)
    return { progress: { ...next, soakedMs }, verdict: { is: 'Soaking', message: `${name} soaks, ${left} s to go` } }
  }
  const waveIndex = progress.waveIndex + 1
  const complete = waveIndex === rollout.waves.length
  return {
    progress: { ...next, waveIndex, soakedMs: 0, progressedAtMs: nowMs },
    verdict: complete
      ? { is: 'Complete', message: 'every wave is complete' }
      : { is: 'Progressing', message: `wave ${waveIndex + 1} of ${rollout.waves.length} begins` },
  }
}

/** Why the rollout must halt; undefined while failures are within the threshold. */
function failureOf(
  { failureThreshold }: Pick<Rollout, 'failureThreshold'>,
  reports: RegionReport[],
): string | undefined {
  const failed = sum(reports, (counts) => counts.failed)
  const updated = sum(reports, (counts) => counts.updated)
  const desired = sum(reports, (counts) => counts.desired)
  const allowed = updated < smallRollout ? 0 : resolveCount(failureThreshold, desired)
  if (failed > allowed) return `${failed} of ${desired} machines failed; ${allowed} may`
  const halted = reports.find((report) => report.halted)
  return halted && `region ${halted.region} halted on its own threshold`
}

type Waves = Pick<Rollout, 'waves'>

function isComplete({ region, counts, fresh }: RegionReport, { waves }: Waves, { waveIndex }: Progress): boolean {
  if (!counts || !fresh) return false
  const wanted = targetCount(targetOf(waves, waveIndex, region), counts.desired)
  // A machine that can't be reached is exempt; it catches up when it is back.
  return counts.healthy >= Math.min(wanted, counts.desired - counts.unreachable)
}

function missing({ region, counts, fresh }: RegionReport, { waves }: Waves, { waveIndex }: Progress): string {
  if (!counts || !fresh) return `region ${region} has not reported yet`
  const wanted = targetCount(targetOf(waves, waveIndex, region), counts.desired)
  return `region ${region} has ${counts.healthy} of ${wanted} machines healthy (${counts.fetched} of ${counts.desired} fetched)`
}

const sum = (reports: RegionReport[], of: (counts: MachineCounts) => number): number =>
  reports.reduce((total, { counts }) => total + (counts ? of(counts) : 0), 0)
