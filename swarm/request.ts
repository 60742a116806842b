/** BEP 3's block; what foreign peers are asked for, and the unit in which pieces are accounted. */
export const STANDARD_BLOCK_BYTES = 16 << 10

/** One request under way to a peer. */
export interface Request {
  pieceIndex: number
  begin: number
  sizeBytes: number
  sentMs: number
}

/** One number per block of a swarm: pieces are at most 64 MiB, so 4096 units. */
export function requestKey(pieceIndex: number, begin: number): number {
  return pieceIndex * 4096 + begin / STANDARD_BLOCK_BYTES
}

/** A block as a run of units of 16 KiB. */
export function unitsOf(request: { begin: number; sizeBytes: number }): [unit: number, units: number] {
  return [request.begin / STANDARD_BLOCK_BYTES, Math.ceil(request.sizeBytes / STANDARD_BLOCK_BYTES)]
}
