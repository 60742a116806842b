import type { MachineCounts, Rollout, Wave } from '../api/goalState.ts'
import { durationMs, type IntOrPercent, resolveCount } from '../api/meta.ts'
import { covers, targetCount, targetOf } from './plan.ts'

/** Where a rollout stands; kept in the GoalState's status, so that any hub goes on from it. */
export interface Progress {
  /** The current wave; `waves.length` when all are complete. */
  waveIndex: number
  /** Its machines may change; before, those of the waves before it may. */
  open: boolean
  /** How long the current wave has been seen complete; undefined while it is not. */
  soakedMs: number | undefined
  /** How long nothing came forward, by the time in which it could. */
  waitedMs: number
  /** Machines fetched and healthy when last looked. */
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
  /** Many of its machines fell silent at once. */
  manySilent: boolean
}

/** What people, the calendar and the goal's check say. */
export interface Gates {
  /** Nothing changes now. */
  stopped?: { is: 'Paused' | 'Frozen'; message: string } | undefined
  /** Waves, from 0, that may begin though they need approval. */
  approved: ReadonlySet<number>
  /** Waves whose soak is skipped. */
  promoted: ReadonlySet<number>
  /** What the goal's check answered of the current wave; undefined when all is well, or there is none. */
  check?: { is: 'Ill' | 'Silent'; message: string } | undefined
}

const standing = ['Paused', 'Frozen', 'AwaitingApproval', 'RegionSilent', 'MachinesSilent', 'CheckUnanswered'] as const
/** Its clocks stand: nothing is known to be wrong with the release. */
type StandsStill = (typeof standing)[number]

export type Verdict =
  | { is: 'Progressing'; message: string }
  | { is: 'Soaking'; message: string }
  | { is: StandsStill; message: string }
  /** No way forward was found for progressDeadline; it goes on trying. */
  | { is: 'Late'; message: string }
  | { is: 'Failed'; message: string }
  | { is: 'Complete'; message: string }

export const standsStill = ({ is }: Verdict): boolean => (standing as readonly string[]).includes(is)

type Waves = { waves: Wave[] }
type Rules = Waves & Pick<Rollout, 'failureThreshold' | 'progressDeadline'>

/** Few machines say nothing about a share: until so many are updated, any failure halts. */
const smallRollout = 50
const noGates: Gates = { approved: new Set(), promoted: new Set() }

/** The wave begins, if it may; what it allows is told to the regions only then. */
export function enterWave({ waves }: Waves, progress: Progress, gates: Gates = noGates): Progress {
  const wave = waves[progress.waveIndex]
  if (!wave || progress.open || gates.stopped) return progress
  if (wave.approval && !gates.approved.has(progress.waveIndex)) return progress
  return { ...progress, open: true }
}

/** The wave up to which machines may change; -1: none. */
export const openWave = ({ waveIndex, open }: Progress): number => (open ? waveIndex : waveIndex - 1)

/**
 * One step of a rollout. `elapsedMs` is the time since the last step during which this engine was able to act: soak and
 * deadline count only that, so an outage never counts as time in which all was well, or in which nothing came forward.
 * `unseen` are regions of the wave whose copy of the artifact is being looked at once more; they are told to wait.
 */
export function advance(
  rollout: Rules,
  before: Progress,
  view: { reports: RegionReport[]; unseen?: string[]; elapsedMs: number; gates?: Gates },
): { progress: Progress; verdict: Verdict } {
  const { reports, unseen = [], elapsedMs, gates = noGates } = view
  const wave = rollout.waves[before.waveIndex]
  // It worked. A machine that comes or falls ill later says nothing about that.
  if (!wave) return { progress: before, verdict: { is: 'Complete', message: 'every wave is complete' } }
  const progress = enterWave(rollout, before, gates)
  const failure = failureOf(rollout, reports) ?? (gates.check?.is === 'Ill' ? gates.check.message : undefined)
  if (failure !== undefined) return { progress, verdict: { is: 'Failed', message: failure } }

  const name = `wave ${before.waveIndex + 1} of ${rollout.waves.length}`
  const stands = (is: StandsStill, why: string) => ({
    progress,
    verdict: { is, message: `${name}: ${why}` } as const,
  })
  if (gates.stopped) return stands(gates.stopped.is, gates.stopped.message)
  if (!progress.open) return stands('AwaitingApproval', 'waits for approval')
  const covered = reports.filter(({ region }) => covers(wave, region))
  const silent = covered.find(({ counts, fresh }) => !counts || !fresh)
  if (silent) return stands('RegionSilent', `region ${silent.region} has not reported yet`)

  const struck = reports.find(({ manySilent }) => manySilent)
  if (struck) return stands('MachinesSilent', `many machines of ${struck.region} fell silent at once`)

  const reached = sum(reports, ({ fetched, healthy }) => fetched + healthy)
  const waitedMs = reached > progress.reached ? 0 : progress.waitedMs + elapsedMs
  const next = { ...progress, reached, waitedMs }
  const lacking = covered.find((report) => !isComplete(report, rollout, progress))
  if (lacking) {
    const looked = unseen.length > 0 ? `; looking at the copy in ${unseen.join(', ')} once more` : ''
    const message = `${name}: ${missing(lacking, rollout, progress)}${looked}`
    const late = waitedMs > durationMs(rollout.progressDeadline)
    // What soaked must stay healthy throughout.
    return { progress: { ...next, soakedMs: undefined }, verdict: { is: late ? 'Late' : 'Progressing', message } }
  }
  // Whom nobody hears is exempt, but somebody has to show that it works.
  if (sum(covered, ({ desired }) => desired) > 0 && sum(reports, ({ healthy }) => healthy) === 0)
    return stands('MachinesSilent', 'none of its machines can be reached')
  const soakMs = durationMs(wave.soak)
  if (!gates.promoted.has(progress.waveIndex)) {
    if (gates.check) return stands('CheckUnanswered', gates.check.message)
    // Until now it was not known to be complete.
    const soakedMs = progress.soakedMs === undefined ? 0 : progress.soakedMs + elapsedMs
    if (soakedMs < soakMs) {
      const left = Math.ceil((soakMs - soakedMs) / 1000)
      return {
        progress: { ...next, waitedMs: 0, soakedMs },
        verdict: { is: 'Soaking', message: `${name} soaks, ${left} s to go` },
      }
    }
  }
  const waveIndex = progress.waveIndex + 1
  const begun = enterWave(rollout, { waveIndex, open: false, soakedMs: undefined, waitedMs: 0, reached }, gates)
  if (waveIndex === rollout.waves.length)
    return { progress: begun, verdict: { is: 'Complete', message: 'every wave is complete' } }
  const following = `wave ${waveIndex + 1} of ${rollout.waves.length}`
  return {
    progress: begun,
    verdict: begun.open
      ? { is: 'Progressing', message: `${following} begins` }
      : { is: 'AwaitingApproval', message: `${following}: waits for approval` },
  }
}

/** How many machines may fail. */
export function allowedFailures(
  threshold: IntOrPercent,
  { updated, desired }: { updated: number; desired: number },
): number {
  return updated < smallRollout ? 0 : resolveCount(threshold, desired)
}

/** Why the rollout must halt; undefined while failures are within the threshold. */
function failureOf(
  { failureThreshold }: Pick<Rollout, 'failureThreshold'>,
  reports: RegionReport[],
): string | undefined {
  const failed = sum(reports, (counts) => counts.failed)
  const updated = sum(reports, (counts) => counts.updated)
  const desired = sum(reports, (counts) => counts.desired)
  const allowed = allowedFailures(failureThreshold, { updated, desired })
  if (failed > allowed) return `${failed} of ${desired} machines failed; ${allowed} may`
  const halted = reports.find((report) => report.halted)
  return halted && `region ${halted.region} halted on its own threshold`
}

function isComplete({ region, counts }: RegionReport, { waves }: Waves, { waveIndex }: Progress): boolean {
  if (!counts) return false
  const wanted = targetCount(targetOf(waves, waveIndex, region), counts.desired)
  // A machine that can't be reached is exempt; it catches up when it is back. So are those that may fail, and did.
  return counts.healthy >= Math.min(wanted, counts.desired - counts.unreachable - counts.failed)
}

function missing({ region, counts }: RegionReport, { waves }: Waves, { waveIndex }: Progress): string {
  if (!counts) return `region ${region} has not reported yet`
  const wanted = targetCount(targetOf(waves, waveIndex, region), counts.desired)
  return `region ${region} has ${counts.healthy} of ${wanted} machines healthy (${counts.fetched} of ${counts.desired} fetched)`
}

const sum = (reports: RegionReport[], of: (counts: MachineCounts) => number): number =>
  reports.reduce((total, { counts }) => total + (counts ? of(counts) : 0), 0)
