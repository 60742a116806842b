import { Bitfield } from './bitfield.ts'
import type { Clock } from './clock.ts'
import type { Downloader } from './downloader.ts'
import type { FirstCopies } from './firstCopies.ts'
import type { Peer } from './peer.ts'
import type { PiecePicker } from './picker.ts'
import { encodeMessage, messageId, WireError } from './wire.ts'

/** More than a peer fetches at once; some of what it began it did not end, and never says so. */
const MAX_BEGUN = 4096

interface OffersOptions {
  pieceCount: number
  picker: PiecePicker
  downloader: Downloader
  firstCopies: FirstCopies
  clock: Clock
}

/** Which pieces each peer may be asked for, and whether we are interested: it offers one that we lack. */
export class Offers {
  readonly #o: OffersOptions

  constructor(o: OffersOptions) {
    this.#o = o
  }

  /** It has all of these; undefined: everything. aria2 sends another bitfield instead of many a `have`. */
  hasAllOf(peer: Peer, bits: Buffer | undefined): void {
    const { pieceCount } = this.#o
    const pieces = bits ? Bitfield.parse(pieceCount, bits) : new Bitfield(pieceCount)
    if (!pieces) throw new WireError('a malformed bitfield')
    if (!bits) pieces.addAll()
    for (let index = 0; index < pieceCount; index++) if (pieces.has(index)) this.has(peer, index)
    this.updateInterest(peer)
  }

  /** It has this piece. */
  has(peer: Peer, index: number): void {
    if (!peer.has.add(index)) return
    if (peer.begun.delete(index)) this.#o.downloader.offered(peer, index)
    else this.#add(peer, index)
    this.#o.firstCopies.gained(peer, index)
  }

  /** It is receiving this piece, over so many hops, and passes it on. */
  began(peer: Peer, index: number, hops: number): void {
    const { pieceCount, downloader } = this.#o
    if (index >= pieceCount || hops === 0) throw new WireError('began a piece that does not exist')
    if (peer.has.has(index) || !downloader.pieces.mayPassOn(peer)) return
    const known = peer.begun.has(index)
    if (!known && peer.begun.size >= MAX_BEGUN) throw new WireError('began too many pieces')
    peer.begun.set(index, hops)
    if (known) downloader.offered(peer, index)
    else this.#add(peer, index)
    this.updateInterest(peer)
  }

  #add(peer: Peer, index: number): void {
    const { picker, downloader } = this.#o
    picker.peerHas(index, peer.near)
    downloader.offered(peer, index)
    if (!picker.had.has(index)) peer.wanted++
  }

  /** It was asked for this piece, and has not got it, whatever it said. */
  lacks(peer: Peer, index: number): void {
    if (!peer.has.remove(index) && !peer.begun.delete(index)) return
    const { picker } = this.#o
    picker.peerLacks(index, peer.near)
    if (!picker.had.has(index)) peer.wanted--
  }

  left(peer: Peer): void {
    const { picker } = this.#o
    picker.peerLeft(peer.has, peer.near)
    for (const index of peer.begun.keys()) picker.peerLacks(index, peer.near)
  }

  /** We have this piece, and want it of nobody any more. */
  gained(peer: Peer, index: number): void {
    if (!peer.offers(index)) return
    peer.wanted--
    if (this.#o.picker.had.full && peer.has.full) peer.close('both complete')
    else if (peer.wanted === 0) {
      peer.amInterested = false
      peer.write(encodeMessage(messageId.notInterested))
    }
  }

  /** We have this piece no longer. */
  lost(peer: Peer, index: number): void {
    if (!peer.offers(index)) return
    peer.wanted++
    this.updateInterest(peer)
  }

  /** It offers more, or we lack more: it is told of our interest, or asked at once. */
  updateInterest(peer: Peer): void {
    const { picker, downloader, clock } = this.#o
    if (peer.has.full && picker.had.full) peer.close('both complete')
    else if (!peer.amInterested && peer.wanted > 0) {
      peer.amInterested = true
      peer.write(encodeMessage(messageId.interested))
    } else downloader.fill(peer, clock.nowMs())
  }
}
