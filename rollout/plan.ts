import type { Rollout, Wave } from '../api/goalState.ts'
import type { Target } from './envelope.ts'

/** The waves of a rollout to these regions: what the goal says, or one region after the other, and one machine before all. */
export function wavesOf({ waves }: Pick<Rollout, 'waves'>, regions: string[]): Wave[] {
  if (waves) return waves
  const everywhere = regions.map((region) => ({ regions: [region], percent: 100, soak: '0s' }))
  return [{ regions: regions.slice(0, 1), machines: 1, soak: '0s' }, ...everywhere]
}

/** A rollback goes everywhere at once; the budget still bounds how many machines are down at a time. */
export const rollbackWaves: Wave[] = [{ regions: ['*'], percent: 100, soak: '0s' }]

/** The regions the waves name, all where there are none, sorted; `*` means `active`, those that exist and aren't cordoned when the rollout starts. */
export function regionsOf({ waves }: Pick<Rollout, 'waves'>, active: string[]): string[] {
  const named = (waves ?? [{ regions: ['*'] }]).flatMap(({ regions }) => (regions.includes('*') ? active : regions))
  return [...new Set(named)].sort()
}

/** Whether a wave goes to this region of the rollout. */
export const covers = (wave: Wave, region: string): boolean =>
  wave.regions.includes('*') || wave.regions.includes(region)

/** How far a region may go in a wave: the highest of the waves so far, so that a target never falls. Wave -1: fetch only. */
export function targetOf(waves: Wave[], waveIndex: number, region: string): Target {
  const soFar = waves.slice(0, waveIndex + 1).filter((wave) => covers(wave, region))
  return {
    machines: Math.max(0, ...soFar.map(({ machines }) => machines ?? 0)),
    percent: Math.max(0, ...soFar.map(({ percent }) => percent ?? 0)),
  }
}

/** How many of `selected` machines a target means: at least one, where it is not zero and there is one. */
export function targetCount(target: Target, selected: number): number {
  return Math.min(selected, Math.max(target.machines, Math.ceil((target.percent * selected) / 100)))
}

/** What a wave does in a region: how many of its machines it changes, after those that the waves before it have. */
export interface PlannedStep {
  /** From 1. */
  wave: number
  region: string
  changes: number
  /** So many of `desired` run it then. */
  of: number
  desired: number
}

/** The steps of a rollout in regions with so many machines, as of now; a wave that changes nothing has none. */
export function planOf(waves: Wave[], regions: { name: string; desired: number }[]): PlannedStep[] {
  return waves.flatMap((wave, index) =>
    regions
      .filter(({ name }) => covers(wave, name))
      .map(({ name, desired }) => {
        const upTo = (waveIndex: number) => targetCount(targetOf(waves, waveIndex, name), desired)
        const of = upTo(index)
        return { wave: index + 1, region: name, changes: of - upTo(index - 1), of, desired }
      })
      .filter(({ changes }) => changes > 0),
  )
}

/** A target as people read it: `1`, `25%`, `0`. */
export function showTarget({ machines, percent }: Target): string {
  if (percent === 0) return String(machines)
  return machines === 0 ? `${percent}%` : `${percent}%, at least ${machines}`
}
