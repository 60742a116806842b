import type { Tracker } from './tracker.ts'

/**
 * An artifact is lent in parts, piece i being of part i % parts: small ones, so that who reads slowly holds up little.
 * With 8 parts all waited for one machine whose link was a tenth of theirs.
 */
const MAX_PARTS = 64
const LEAST_PART_PIECES = 4
/** So many read an artifact at once, for one connection to a bucket gives less than a machine's link; and all artifacts. */
const READERS = 8
const MAX_READERS = 64
/** Parts of one machine: one, and twice as many whenever it has read them all; more when there are fewer machines. */
const MAX_SHARE = 4
/** What one machine could not read in so long another may try. */
const HAND_OVER_MS = 15_000
/**
 * A machine whose peers gave it nothing for so long, though they have it all, may read the bucket too: who has it may have
 * been banned by all for sending wrong bytes.
 */
const STUCK_MS = 15_000

interface Reader {
  expiresMs: number
  share: number
  /** Since when each part is its. */
  readonly parts: Map<number, number>
}

interface Standing {
  /** The most of it. */
  progress: number
  sinceMs: number
}

interface Artifact {
  readonly readers: Map<string, Reader>
  readonly standing: Map<string, Standing>
  /** Parts of which a machine has read something that may be with nobody else yet. */
  readonly read: Map<string, Set<number>>
}

export interface LeaseRequest {
  infoHash: string
  machine: string
  havePieces: number
  totalPieces: number
  /** Rises with what peers give it, in any unit; not with what it reads from the bucket. */
  progress: number
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

  /** Call it with every announce. @returns the pieces it may read; none: not now. */
  request(request: LeaseRequest, nowMs: number): number[] {
    const { infoHash, machine, havePieces, totalPieces } = request
    if (havePieces >= totalPieces) {
      this.release(infoHash, machine)
      return []
    }
    let artifact = this.#artifacts.get(infoHash)
    if (!artifact) {
      artifact = { readers: new Map(), standing: new Map(), read: new Map() }
      this.#artifacts.set(infoHash, artifact)
    }
    const { readers, read } = artifact
    for (const [name, { expiresMs }] of readers) if (expiresMs <= nowMs) readers.delete(name)
    const stuck = this.#isStuck(artifact, request, nowMs)
    const known = readers.get(machine)
    if (!known && (readers.size >= READERS || this.#readers >= MAX_READERS)) return []
    const reader: Reader = known ?? { expiresMs: 0, share: 1, parts: new Map() }
    const lacking = this.#lacking(request, stuck)
    const { incomplete } = this.#tracker.counts(infoHash)
    const before = new Set(reader.parts.keys())
    review(reader, { nowMs, alone: incomplete <= 1, isLacking: (part) => lacking(part).length > 0 })
    const most = Math.max(MAX_SHARE, Math.ceil(partsOf(totalPieces) / Math.max(1, incomplete)))
    reader.share = Math.min(reader.share, most)
    for (const part of [...reader.parts.keys()].slice(reader.share)) reader.parts.delete(part)
    // what was taken from it now goes to whoever asks next
    const isFree = (part: number) => !before.has(part) && ![...readers.values()].some(({ parts }) => parts.has(part))
    for (let part = 0; part < partsOf(totalPieces) && reader.parts.size < reader.share; part++)
      if (isFree(part) && lacking(part).length > 0) reader.parts.set(part, nowMs)
    const parts = [...reader.parts.keys()]
    if (parts.length === 0) {
      readers.delete(machine)
      return []
    }
    reader.expiresMs = nowMs + this.#leaseMs
    readers.set(machine, reader)
    read.set(machine, new Set([...(read.get(machine) ?? []), ...parts]))
    return parts.flatMap(lacking)
  }

  /**
   * Whether a machine reads from the bucket, or has what it read to itself: when it falls silent everyone waits, so the
   * tracker is to hear of it often.
   */
  reads(infoHash: string, machine: string, totalPieces: number): boolean {
    const read = this.#artifacts.get(infoHash)?.read
    const availability = this.#tracker.availabilityOf(infoHash)
    for (const part of read?.get(machine) ?? [])
      if (piecesOf(part, totalPieces, (index) => availability(index) <= 1).length > 0) return true
    read?.delete(machine)
    return false
  }

  /** It needs nothing any more, or left. */
  release(infoHash: string, machine: string): void {
    const artifact = this.#artifacts.get(infoHash)
    if (!artifact) return
    const { readers, standing, read } = artifact
    for (const byMachine of [readers, standing, read]) byMachine.delete(machine)
    if (readers.size + standing.size === 0) this.#artifacts.delete(infoHash)
  }

  /** The pieces of a part that nobody who can be asked has; for who is stuck, those that it lacks itself. */
  #lacking({ infoHash, machine, totalPieces }: LeaseRequest, stuck: boolean): (part: number) => number[] {
    const availability = this.#tracker.availabilityOf(infoHash)
    const isLacking = stuck
      ? (index: number) => !this.#tracker.has(infoHash, machine, index)
      : (index: number) => availability(index) === 0
    return (part) => piecesOf(part, totalPieces, isLacking)
  }

  #isStuck({ standing }: Artifact, { machine, progress }: LeaseRequest, nowMs: number): boolean {
    const before = standing.get(machine)
    const restarted = progress === 0 && before?.progress !== 0
    // what turns out wrong is taken off again
    if (before && progress <= before.progress && !restarted) return nowMs - before.sinceMs > STUCK_MS
    standing.set(machine, { progress, sinceMs: nowMs })
    return false
  }

  get #readers(): number {
    let count = 0
    for (const { readers } of this.#artifacts.values()) count += readers.size
    return count
  }
}

/** What of its parts a reader keeps, and how many it may have. */
function review(reader: Reader, o: { nowMs: number; alone: boolean; isLacking: (part: number) => boolean }): void {
  const had = [...reader.parts]
  const unread = had.filter(([part]) => o.isLacking(part))
  if (had.length > 0 && unread.length === 0) reader.share *= 2
  reader.parts.clear()
  for (const [part, sinceMs] of unread)
    if (o.alone || o.nowMs - sinceMs <= HAND_OVER_MS) reader.parts.set(part, sinceMs)
}

function partsOf(totalPieces: number): number {
  return Math.min(MAX_PARTS, Math.ceil(totalPieces / LEAST_PART_PIECES))
}

function piecesOf(part: number, totalPieces: number, which: (index: number) => boolean): number[] {
  const pieces: number[] = []
  for (let index = part; index < totalPieces; index += partsOf(totalPieces)) if (which(index)) pieces.push(index)
  return pieces
}
