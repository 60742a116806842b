import { Bitfield } from './bitfield.ts'
import type { Peer } from './peer.ts'
import { Spread } from './spread.ts'
import { encodeMessage, encodeNumbers, messageId } from './wire.ts'

interface FirstCopiesOptions {
  had: Bitfield
  random: () => number
  nowMs: () => number
  peers(): Iterable<Peer>
  /** Our link has room. */
  spare(): boolean
}

/**
 * What a swarm has from us first: all of it, if we had everything from the start, or what we read from the bucket. Each
 * piece is told to one peer, until others have it; everything else we have is told to everyone.
 */
export class FirstCopies {
  readonly #o: FirstCopiesOptions
  /** We had everything from the start. */
  readonly #seeds: boolean
  #spread: Spread<Peer> | undefined

  constructor(o: FirstCopiesOptions) {
    this.#o = o
    this.#seeds = o.had.full
    if (!this.#seeds) return
    for (let index = 0; index < o.had.size; index++) this.add(index)
    this.end()
  }

  /** We have everything, and say so piece by piece. */
  get seeding(): boolean {
    return this.#seeds && this.#spread?.over === false
  }

  /** What everyone may know that we have. */
  get #said(): Bitfield {
    const { had } = this.#o
    const spread = this.#spread
    if (!spread || spread.over) return had
    const said = new Bitfield(had.size)
    for (let index = 0; index < had.size; index++) if (had.has(index) && !spread.covers(index)) said.add(index)
    return said
  }

  /** We have a piece that nobody else has. */
  add(index: number): void {
    if (!this.#spread || this.#spread.over) {
      this.#spread = new Spread<Peer>({
        pieces: [],
        random: this.#o.random,
        nowMs: this.#o.nowMs,
        isWithPeers: (piece) => [...this.#o.peers()].some((peer) => peer.has.has(piece)),
        has: (peer, piece) => peer.has.has(piece),
        tell: (peer, piece) => peer.write(encodeNumbers(messageId.have, piece)),
      })
      for (const peer of this.#o.peers()) this.#spread.joined(peer)
    }
    this.#spread.add(index)
  }

  /** No more will be added for now. */
  end(): void {
    this.#spread?.end()
  }

  /** It is told of what everyone may know that we have. */
  joined(peer: Peer): void {
    const said = this.#said
    if (peer.fast && said.full) peer.write(encodeMessage(messageId.haveAll))
    else if (peer.fast && said.count === 0) peer.write(encodeMessage(messageId.haveNone))
    else if (said.count > 0) peer.write(encodeMessage(messageId.bitfield, said.bytes))
    if (this.#spread && !this.#spread.over) this.#spread.joined(peer)
  }

  left(peer: Peer): void {
    this.#spread?.left(peer)
  }

  /** It has a piece. */
  gained(peer: Peer, index: number): void {
    this.#spread?.gained(peer, index)
  }

  /** It was sent all of a piece; agents say themselves that they have it. */
  sent(peer: Peer, index: number): void {
    if (!this.#spread || peer.isAgent) return
    this.#spread.arrived(peer, index)
    this.offer(peer)
  }

  /** We lost a piece: each peer is told of all we have. */
  abandon(): void {
    this.#spread?.abandon()
  }

  /** Tells it of what it may have from us next. */
  offer(peer: Peer): void {
    this.#spread?.offer(peer, this.#o.spare())
  }

  offerAll(): void {
    if (this.#spread) for (const peer of this.#o.peers()) this.offer(peer)
  }
}
