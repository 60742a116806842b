/** What silence says of a release (design: silence is told from failure). */

/** Machines of a region that a goal selects, parted by whether they were allowed to change. */
export interface Heard {
  /** Run the template, or were allowed to and did not come back. */
  changed: { machines: number; silent: number }
  /** All others. */
  unchanged: { machines: number; silent: number }
  /** Of both, those that fell silent within `latelyMs`. */
  lately: number
}

/** Silences that began within so long are one event. */
export const latelyMs = 600_000
const manyShare = 0.05

/**
 * Many that fall silent at once say more of the network than of the release: nothing is judged, and nothing more begins.
 * Otherwise those that changed have failed as far as they are silent more often than those that did not. One machine is
 * never many.
 */
export function judgeSilence({ changed, unchanged, lately }: Heard): { many: boolean; failed: number } {
  if (lately > Math.max(1, manyShare * (changed.machines + unchanged.machines))) return { many: true, failed: 0 }
  const usual = unchanged.machines === 0 ? 0 : (changed.machines * unchanged.silent) / unchanged.machines
  return { many: false, failed: Math.max(0, changed.silent - Math.floor(usual)) }
}
