import { PiecePicker } from '../../swarm/picker.ts'
import type { Spread } from '../../swarm/spread.ts'

/** A piece that one machine fetches. */
interface Fetch {
  /** Whom it was asked of, the last one last. */
  readonly from: Machine[]
  askedMs: number
}

/** A connection, as one of its ends sees it. */
export interface Link {
  readonly peer: Machine
  readonly near: boolean
  readonly dialled: boolean
  /** Pieces asked of it and not there yet. */
  asked: number
  /** Of a piece, lately. */
  tookMs: number
  /** When one came last; whether it is late with what it was asked for. */
  lastMs: number
  snubbed: boolean
  /** The picker's version when it had nothing to begin; -1: it may have. */
  nothingAt: number
  /** What it has since. */
  readonly fresh: number[]
  /** Where the other end has this link. */
  back: Link | undefined
}

/** One machine of the simulation: the real picker, and links that carry so many bytes a millisecond. */
export class Machine {
  readonly index: number
  readonly name: string
  readonly zone: string
  readonly rack: string
  readonly bytesPerMs: number
  readonly slow: boolean
  readonly picker: PiecePicker
  readonly links: Link[] = []
  readonly fetches = new Map<number, Fetch>()
  /** It was told of, and did not dial yet. */
  readonly addresses: Machine[] = []
  /** Until when its own link is busy, each way. */
  upFreeMs = 0
  downFreeMs = 0
  startMs = 0
  doneMs = Number.NaN
  /** When it falls silent. */
  deadMs = Number.POSITIVE_INFINITY
  complete = false
  dialled = 0
  accepted = 0
  lastNearMs = 0
  lastGainMs = 0
  /** Its lease on the bucket: pieces, since when each, until when. */
  lease: { pieces: Map<number, number>; untilMs: number } | undefined
  /** When it announced last, and is to announce again. */
  announcedMs = 0
  announceMs = 0
  originReads = 0
  /** It read something since it was last drained. */
  readsLease = false
  farFetches = 0
  /** Of pieces read from the bucket. */
  spread: Spread<Machine> | undefined
  /** The next link to ask. */
  turn = 0

  constructor(o: {
    index: number
    zone: string
    rack: string
    bytesPerMs: number
    slow: boolean
    pieceCount: number
    random: () => number
  }) {
    this.index = o.index
    this.name = `m${o.index}`
    this.zone = o.zone
    this.rack = o.rack
    this.bytesPerMs = o.bytesPerMs
    this.slow = o.slow
    this.picker = new PiecePicker(o.pieceCount, o.random)
  }

  linkTo(peer: Machine): Link | undefined {
    return this.links.find((link) => link.peer === peer)
  }
}
