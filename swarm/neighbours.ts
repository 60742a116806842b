import type { Sender } from './activePieces.ts'
import { type Address, AddressBook, addressKey } from './addresses.ts'
import { Bans } from './bans.ts'
import type { Clock } from './clock.ts'
import type { Peer } from './peer.ts'

/** In a small swarm everyone knows everyone: with 8, machines that came last finished a fifth later. */
const MAX_DIALLED = 24
const MAX_ACCEPTED = 40

interface NeighboursOptions {
  ownId: Uint8Array
  random: () => number
  clock: Clock
  dial(address: Address): Peer
}

/** Whom a swarm is connected to, and whom it may be: addresses to dial, connections that came in, bans. */
export class Neighbours {
  /** Those who proved what they had to. */
  readonly joined = new Set<Peer>()
  readonly #dialling = new Set<Peer>()
  readonly #addresses: AddressBook
  readonly #bans = new Bans()
  readonly #ownId: string
  readonly #o: NeighboursOptions

  constructor(o: NeighboursOptions) {
    this.#o = o
    this.#ownId = Buffer.from(o.ownId).toString('hex')
    this.#addresses = new AddressBook(o.random)
  }

  /** Ids and addresses of those who sent wrong bytes. */
  get banned(): string[] {
    return this.#bans.list()
  }

  /** Someone may want pieces of us; a seed that spreads says less than it has. */
  get lackSomething(): boolean {
    return [...this.joined].some((peer) => !peer.has.full && !peer.spreads)
  }

  add(addresses: Address[]): void {
    const nowMs = this.#o.clock.nowMs()
    for (const address of addresses) if (!this.#bans.bansAddress(address)) this.#addresses.add(address, nowMs)
  }

  /** @returns false for one that is banned, ourselves, connected already or one too many. */
  admit(peer: Peer): boolean {
    if (this.#bans.bansPeer(peer.id) || this.#bans.bansAddress(peer.address)) return false
    if (peer.id === this.#ownId) {
      this.#addresses.forget(peer.address)
      return false
    }
    for (const other of this.joined) {
      if (other.id !== peer.id) continue
      // both dialled: both ends keep the one that the lower id dialled
      if (other.dialled === peer.dialled || other.dialled === this.#ownId < peer.id) return false
      other.close('connected twice')
    }
    if (!peer.dialled && [...this.joined].filter((other) => !other.dialled).length >= MAX_ACCEPTED) return false
    this.#dialling.delete(peer)
    this.joined.add(peer)
    this.#addresses.occupy(peer.address)
    return true
  }

  left(peer: Peer): void {
    this.joined.delete(peer)
    if (!peer.dialled) this.#free(peer)
  }

  /** A connection we dialled is over, joined or not. */
  hungUp(peer: Peer): void {
    this.#dialling.delete(peer)
    this.#free(peer)
  }

  /** It may be dialled again, in a while, unless another connection to it is there. */
  #free(peer: Peer): void {
    this.#addresses.freed(peer.address, peer.receivedBytes > 0, this.#o.clock.nowMs())
    for (const other of this.joined)
      if (addressKey(other.address) === addressKey(peer.address)) this.#addresses.occupy(peer.address)
  }

  ban(sender: Sender): void {
    this.#bans.ban(sender)
    this.#addresses.forget(sender.address)
    for (const peer of [...this.joined]) if (this.#bans.bansPeer(peer.id)) peer.close('sent wrong bytes')
  }

  hangUp(id: string, reason: string): void {
    for (const peer of [...this.joined]) if (peer.id === id) peer.close(reason)
  }

  dialMore(): void {
    let dialled = this.#dialling.size
    for (const peer of this.joined) if (peer.dialled) dialled++
    for (; dialled < MAX_DIALLED; dialled++) {
      const address = this.#addresses.take(this.#o.clock.nowMs())
      if (!address) return
      this.#dialling.add(this.#o.dial(address))
    }
  }

  close(reason: string): void {
    for (const peer of [...this.joined, ...this.#dialling]) peer.close(reason)
  }
}
