import type { Sender } from './activePieces.ts'
import type { PieceBuffer } from './buffers.ts'
import type { Peer } from './peer.ts'
import { STANDARD_BLOCK_BYTES } from './request.ts'

const [FREE, ASKED, RECEIVING, DONE] = [0, 1, 2, 3]
const MAX_ASKED = 2

/**
 * A piece being fetched, in units of 16 KiB; a block is a run of units. Only one block at a time is copied into a
 * unit, so that who sent it is never in doubt.
 */
export class ActivePiece {
  readonly index: number
  readonly sizeBytes: number
  readonly buffer: PieceBuffer
  /** It must come whole from its owner, who has it. */
  readonly oneSender: boolean
  readonly senders: Sender[] = []
  readonly states: Uint8Array
  /** How many peers each unit is asked of. */
  readonly asked: Uint8Array
  /** The peer that fetches it; others only help. */
  owner: Peer | undefined
  /** From who has it whole, over its owner, to us. */
  hops = 0
  /** Peers were told that they may have it from us as it comes. */
  passedOn = false
  /** Some of it came, or is to come, from a peer that has begun it. */
  secondHand = false
  /** What releases on this disk had of it. */
  localBytes = 0
  /** All there; being hashed and written. */
  checking = false
  beganMs = 0
  lastProgressMs = 0
  #doneUnits = 0

  constructor(o: { index: number; sizeBytes: number; buffer: PieceBuffer; oneSender: boolean; units: number }) {
    this.index = o.index
    this.sizeBytes = o.sizeBytes
    this.buffer = o.buffer
    this.oneSender = o.oneSender
    this.states = new Uint8Array(o.units)
    this.asked = new Uint8Array(o.units)
  }

  get missingUnits(): number {
    return this.states.length - this.#doneUnits
  }

  /** Nothing is asked of anyone, nothing arrives. */
  get idle(): boolean {
    return !this.checking && this.states.every((state) => state === FREE || state === DONE)
  }

  /** Whether all of a block is there. */
  holds(first: number, units: number): boolean {
    for (let unit = first; unit < first + units; unit++) if (this.states[unit] !== DONE) return false
    return true
  }

  ask(unit: number): void {
    this.asked[unit] = (this.asked[unit] ?? 0) + 1
    if (this.states[unit] === FREE) this.states[unit] = ASKED
  }

  /** A request came to nothing; `receiving`: its block was under way. */
  unask(first: number, units: number, receiving: boolean): void {
    for (let unit = first; unit < first + units; unit++) {
      const asked = Math.max(0, (this.asked[unit] ?? 0) - 1)
      this.asked[unit] = asked
      const state = this.states[unit]
      if (state === ASKED || (receiving && state === RECEIVING)) this.states[unit] = asked > 0 ? ASKED : FREE
    }
  }

  /** A block begins. @returns false when any of it is there, or arriving from another. */
  receive(first: number, units: number): boolean {
    if (this.checking) return false
    for (let unit = first; unit < first + units; unit++)
      if (this.states[unit] === RECEIVING || this.states[unit] === DONE) return false
    this.states.fill(RECEIVING, first, first + units)
    return true
  }

  /** A block is there. @returns whether the piece is. */
  done(first: number, units: number, sender: Sender): boolean {
    for (let unit = first; unit < first + units; unit++) {
      this.asked[unit] = Math.max(0, (this.asked[unit] ?? 0) - 1)
      this.senders[unit] = sender
    }
    return this.filled(first, units)
  }

  /** Units are there, from whomever. @returns whether the piece is. */
  filled(first: number, units: number): boolean {
    this.states.fill(DONE, first, first + units)
    this.#doneUnits += units
    return this.#doneUnits === this.states.length
  }

  /** What a peer sent is to be fetched again. @returns how many bytes that is. */
  forget(peerId: string): number {
    let sizeBytes = 0
    for (let unit = 0; unit < this.states.length; unit++) {
      if (this.checking || this.states[unit] !== DONE || this.senders[unit]?.id !== peerId) continue
      this.states[unit] = FREE
      delete this.senders[unit]
      this.#doneUnits--
      sizeBytes += Math.min(STANDARD_BLOCK_BYTES, this.sizeBytes - unit * STANDARD_BLOCK_BYTES)
    }
    return sizeBytes
  }

  /** Forgets what came: another peer begins it anew. Requests still under way are released by their own peers. */
  reset(): void {
    this.states.fill(FREE)
    this.asked.fill(0)
    this.#doneUnits = 0
  }

  /** The first free units, up to the next multiple of `max`: so what a peer reads for one block serves the others. */
  freeRun(max: number): { unit: number; units: number } | undefined {
    if (this.checking) return undefined
    return this.#run(max, (unit) => this.states[unit] === FREE)
  }

  /** The first units that are asked of someone else and not arriving; `mine` tells those asked of this peer. */
  lateRun(max: number, mine: (unit: number) => boolean): { unit: number; units: number } | undefined {
    if (this.checking) return undefined
    return this.#run(max, (unit) => this.states[unit] === ASKED && (this.asked[unit] ?? 0) < MAX_ASKED && !mine(unit))
  }

  #run(max: number, fits: (unit: number) => boolean): { unit: number; units: number } | undefined {
    for (let unit = 0; unit < this.states.length; unit++) {
      if (!fits(unit)) continue
      const limit = Math.min(this.states.length, unit + max - (unit % max))
      let end = unit + 1
      while (end < limit && fits(end)) end++
      return { unit, units: end - unit }
    }
    return undefined
  }
}
