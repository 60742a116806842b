import type { Holdings } from './holdings.ts'

/** How far an artifact has come among the machines that are to have it. */
export interface Reach {
  complete: number
  fetching: number
  /** Copies of the piece that the fewest machines have. */
  fewestCopies: number
  /** Pieces that no machine has. */
  missingPieces: number
  /** Percent of the artifact that half of the machines have at least; nine of ten; all. */
  had: { p50: number; p90: number; last: number }
}

/** A machine that did not say what it has counts as one that has nothing. O(machines × pieces / 8). */
export function reachOf(o: { complete: number; fetching: number; holdings: Holdings; pieceCount: number }): Reach {
  const { complete, fetching, holdings, pieceCount } = o
  const counts = Uint32Array.from(holdings.counts()).sort()
  const silent = Math.max(0, fetching - counts.length)
  let [fewestCopies, missingPieces] = [Number.POSITIVE_INFINITY, 0]
  for (let index = 0; index < pieceCount; index++) {
    const copies = complete + holdings.availability(index)
    fewestCopies = Math.min(fewestCopies, copies)
    if (copies === 0) missingPieces++
  }
  /** What all but the `left` furthest behind have at least. */
  const share = (left: number) => {
    if (left < silent) return 0
    const count = counts[left - silent] ?? pieceCount
    return Math.floor((100 * Math.min(count, pieceCount)) / pieceCount)
  }
  const machines = complete + fetching
  return {
    ...{ complete, fetching, fewestCopies, missingPieces },
    had: { p50: share(Math.floor(machines / 2)), p90: share(Math.floor(machines / 10)), last: share(0) },
  }
}
