import { Cron } from 'croner'
import type { Freeze } from '../api/goalState.ts'
import { durationMs } from '../api/meta.ts'

/** The end of the freeze that holds at this moment, Unix ms; of several, the latest. Undefined when none does. */
export function frozenUntil(freezes: Freeze[], nowMs: number): number | undefined {
  const ends = freezes.flatMap(({ cron, duration, timeZone }) => {
    // One that begins right now is among those before the next second; so may be one that is still to begin.
    const runs = new Cron(cron, { timezone: timeZone }).previousRuns(2, new Date(nowMs + 1000))
    const began = runs.find((run) => run.getTime() <= nowMs)
    const endMs = began ? began.getTime() + durationMs(duration) : 0
    return endMs > nowMs ? [endMs] : []
  })
  return ends.length === 0 ? undefined : Math.max(...ends)
}

/** Why a freeze can't be read; undefined when it can. */
export function freezeProblem({ cron, timeZone }: Freeze): string | undefined {
  try {
    new Cron(cron, { timezone: timeZone }).nextRun()
    return undefined
  } catch (error) {
    return `freeze "${cron}" in ${timeZone}: ${(error as Error).message}`
  }
}
