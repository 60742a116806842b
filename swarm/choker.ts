/** A peer as the choker sees it. */
export interface Applicant {
  interested: boolean
  /** Since when it may download; undefined: it is choked. */
  unchokedSinceMs: number | undefined
  /** When it last was choked or became interested: who waits longest comes first. */
  waitingSinceMs: number
}

/**
 * Who may download from us: `slots` interested peers, in turn. Agents all work for the same owner, so there is no tit
 * for tat; few uploads at a time finish pieces sooner than many slow ones, and a turn of `turnMs` keeps it fair.
 */
export function chooseUnchoked<T extends Applicant>(
  applicants: readonly T[],
  o: { slots: number; turnMs: number; nowMs: number },
): Set<T> {
  const interested = applicants.filter((applicant) => applicant.interested)
  const waiting = interested
    .filter((applicant) => applicant.unchokedSinceMs === undefined)
    .sort((a, b) => a.waitingSinceMs - b.waitingSinceMs)
  const holding = interested
    .filter((applicant) => applicant.unchokedSinceMs !== undefined)
    .sort((a, b) => (b.unchokedSinceMs ?? 0) - (a.unchokedSinceMs ?? 0))
  // the longest unchoked are last: they make room for those that wait, once their turn is over
  let over = Math.max(0, holding.length + waiting.length - o.slots)
  while (over > 0 && holding.length > 0) {
    const last = holding.at(-1)
    const turnOver = o.nowMs - (last?.unchokedSinceMs ?? 0) >= o.turnMs
    if (!turnOver && holding.length <= o.slots) break
    holding.pop()
    over--
  }
  const chosen = [...holding, ...waiting].slice(0, o.slots)
  // who wants nothing at the moment keeps a slot that nobody needs: a choke now would cross its next request
  const idle = applicants.filter((applicant) => !applicant.interested && applicant.unchokedSinceMs !== undefined)
  return new Set([...chosen, ...idle.slice(0, o.slots - chosen.length)])
}
