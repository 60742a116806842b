let missed = false

/** Prints a figure beside what it should be. */
export function row(what: string, figure: string, ok: boolean, target: string): void {
  missed ||= !ok
  console.log(`${ok ? '✓' : '✗'} ${what}: ${figure} (${target})`)
}

/** Prints a figure that nothing is asked of. */
export function figure(what: string, value: string): void {
  console.log(`· ${what}: ${value}`)
}

export const anyMissed = (): boolean => missed

export const seconds = (ms: number): string => `${(ms / 1000).toFixed(1)} s`

export async function timed(work: () => Promise<void>): Promise<number> {
  const beganMs = performance.now()
  await work()
  return performance.now() - beganMs
}

/** The value that a share of all are at most. */
export function percentile(values: number[], share: number): number {
  const sorted = [...values].sort((a, b) => a - b)
  return sorted[Math.min(sorted.length - 1, Math.ceil(share * sorted.length) - 1)] ?? Number.NaN
}
