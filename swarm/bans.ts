import { type Address, addressKey } from './addresses.ts'

const HOST_STRIKES = 3

/**
 * Peers that sent wrong bytes. A peer is known by its id and by where it listens; one that comes back under new names
 * costs its whole host after three strikes, unless that is this machine, where others live too.
 */
export class Bans {
  readonly #keys = new Set<string>()
  readonly #strikes = new Map<string, number>()

  ban(peer: { id: string; address: Address }): void {
    const { host } = peer.address
    this.#keys.add(peer.id).add(addressKey(peer.address))
    const strikes = (this.#strikes.get(host) ?? 0) + 1
    this.#strikes.set(host, strikes)
    if (strikes >= HOST_STRIKES && !isLoopback(host)) this.#keys.add(host)
  }

  bansAddress(address: Address): boolean {
    return this.#keys.has(addressKey(address)) || this.#keys.has(address.host)
  }

  bansPeer(id: string): boolean {
    return this.#keys.has(id)
  }

  /** Ids, addresses and hosts. */
  list(): string[] {
    return [...this.#keys]
  }
}

/** Where others live too, in tests and demos. */
export function isLoopback(host: string): boolean {
  return host === '::1' || host.startsWith('127.')
}
