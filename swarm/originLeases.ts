import type { Tracker } from './tracker.ts'

/**
 * An artifact is lent in so many parts, piece i being of part i % PARTS: a few machines read different pieces from the
 * bucket at once, for one connection to a bucket gives less than a machine's link.
 */
const PARTS = 8
/** Parts lent at once, of all artifacts. */
const MAX_LENT = 64
/** For so long a machine gets one part alone; after it a lone machine reads all. */
const SETTLE_MS = 4000
/** A machine that got nothing for so many leases, though others have it all, may read the bucket too. */
const STUCK_LEASES = 2

interface Lease {
  machine: string
  expiresMs: number
}

interface Standing {
  havePieces: number
  sinceMs: number
}

interface Artifact {
  sinceMs: number
  leases: (Lease | undefined)[]
  standing: Map<string, Standing>
}

interface LeaseRequest {
  infoHash: string
  machine: string
  havePieces: number
  totalPieces: number
}

/** What a machine may read from the bucket: pieces i with i % of === n for an n of `parts`. */
export interface OriginParts {
  parts: number[]
  of: number
}

/**
 * Who may read which pieces from the bucket, until when: pieces that no machine of the swarm said it has. Held in
 * memory by the one replica that is tracker; after a takeover it grants nothing until all leases of the one before
 * have run out.
 */
export class OriginLeases {
  readonly #tracker: Tracker
  readonly #leaseMs: number
  readonly #artifacts = new Map<string, Artifact>()

  constructor(o: { tracker: Tracker; leaseMs: number }) {
    this.#tracker = o.tracker
    this.#leaseMs = o.leaseMs
  }

  /** Call it with every announce; undefined: nothing. */
  request(request: LeaseRequest, nowMs: number): OriginParts | undefined {
    const { infoHash, machine, havePieces, totalPieces } = request
    if (havePieces >= totalPieces) {
      this.release(infoHash, machine)
      return undefined
    }
    let artifact = this.#artifacts.get(infoHash)
    if (!artifact) {
      artifact = { sinceMs: nowMs, leases: Array.from({ length: PARTS }), standing: new Map() }
      this.#artifacts.set(infoHash, artifact)
    }
    const { leases } = artifact
    const stuck = this.#isStuck(artifact, request, nowMs)
    // the first to come would have all of it while the others are still on their way
    const young = nowMs - artifact.sinceMs < SETTLE_MS
    const share = young ? 1 : Math.ceil(PARTS / Math.max(1, this.#tracker.counts(infoHash).incomplete))
    const parts: number[] = []
    for (let part = 0; part < Math.min(PARTS, totalPieces); part++) {
      const lease = leases[part]
      const own = lease?.machine === machine
      if (lease && !own && lease.expiresMs > nowMs) continue
      const wanted = parts.length < share && (stuck || this.#isLacking(infoHash, part, totalPieces))
      if (wanted && (own || this.#lent(nowMs) < MAX_LENT)) {
        leases[part] = { machine, expiresMs: nowMs + this.#leaseMs }
        parts.push(part)
      } else if (own) leases[part] = undefined
    }
    return parts.length > 0 ? { parts, of: PARTS } : undefined
  }

  /** It needs nothing any more, or left. */
  release(infoHash: string, machine: string): void {
    const artifact = this.#artifacts.get(infoHash)
    if (!artifact) return
    artifact.standing.delete(machine)
    artifact.leases.forEach((lease, part) => {
      if (lease?.machine === machine) artifact.leases[part] = undefined
    })
    if (artifact.standing.size === 0 && artifact.leases.every((lease) => !lease)) this.#artifacts.delete(infoHash)
  }

  /** Some piece of the part is with nobody who can be asked. */
  #isLacking(infoHash: string, part: number, totalPieces: number): boolean {
    for (let index = part; index < totalPieces; index += PARTS)
      if (this.#tracker.availability(infoHash, index) === 0) return true
    return false
  }

  #isStuck({ standing }: Artifact, { machine, havePieces }: LeaseRequest, nowMs: number): boolean {
    const before = standing.get(machine)
    if (before?.havePieces === havePieces) return nowMs - before.sinceMs > STUCK_LEASES * this.#leaseMs
    standing.set(machine, { havePieces, sinceMs: nowMs })
    return false
  }

  #lent(nowMs: number): number {
    let lent = 0
    for (const { leases } of this.#artifacts.values())
      for (const lease of leases) if (lease && lease.expiresMs > nowMs) lent++
    return lent
  }
}
