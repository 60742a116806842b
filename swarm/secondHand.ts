import { type Address, addressKey } from './addresses.ts'
import { isLoopback } from './bans.ts'

/** Wrong pieces that one peer passes on before it passes on nothing more to us. */
const NAME_STRIKES = 3
/** Wrong pieces that a host passes on, under whatever names, before it is banned: more than one peer is counted. */
const HOST_STRIKES = 3 * NAME_STRIKES

/**
 * Peers that passed on wrong bytes. Each may have been wronged by who sent them, and bans that one, so an honest peer
 * errs a few times; one that errs more often is still good for what it has whole. Known by id and address as bans are;
 * who comes back under new names costs its host, unless that is this machine.
 */
export class SecondHand {
  readonly #strikes = new Map<string, number>()

  /** Nothing is taken from it before it has it. */
  refuses(peer: { id: string; address: Address }): boolean {
    return [peer.id, addressKey(peer.address)].some((name) => (this.#strikes.get(name) ?? 0) >= NAME_STRIKES)
  }

  /** It passed on a wrong piece. @returns what follows. */
  wrong(peer: { id: string; address: Address }): 'nothing' | 'refusal' | 'ban' {
    // what was on its way when it was refused tells nothing new
    if (this.refuses(peer)) return 'nothing'
    const { host } = peer.address
    for (const name of [peer.id, addressKey(peer.address), host])
      this.#strikes.set(name, (this.#strikes.get(name) ?? 0) + 1)
    if ((this.#strikes.get(host) ?? 0) >= HOST_STRIKES && !isLoopback(host)) return 'ban'
    return this.refuses(peer) ? 'refusal' : 'nothing'
  }
}
