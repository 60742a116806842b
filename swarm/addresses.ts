export interface Address {
  host: string
  port: number
}

interface Entry extends Address {
  failures: number
  nextMs: number
  busy: boolean
}

const MAX_KNOWN = 1000
const FIRST_RETRY_MS = 500
const LAST_RETRY_MS = 30_000

export function addressKey(address: Address): string {
  return `${address.host}:${address.port}`
}

/** Node writes IPv4 peers of a dual-stack socket as `::ffff:a.b.c.d`. */
export function plainHost(host: string | undefined): string {
  return host?.replace(/^::ffff:/, '') ?? ''
}

/** BEP 23: 6 bytes a peer. */
export function compactPeers(peers: Address[]): Buffer {
  return Buffer.concat(
    peers.map(({ host, port }) => Buffer.from([...host.split('.').map(Number), port >> 8, port & 0xff])),
  )
}

/** The addresses in a compact answer. */
export function parseCompactPeers(bytes: Uint8Array): Address[] {
  const peers: Address[] = []
  for (let at = 0; at + 6 <= bytes.length; at += 6) {
    const [a, b, c, d, high = 0, low = 0] = bytes.subarray(at, at + 6)
    const port = (high << 8) | low
    if (port > 0) peers.push({ host: `${a}.${b}.${c}.${d}`, port })
  }
  return peers
}

/** The peers we were told of: whom to dial next, and not again too soon. */
export class AddressBook {
  readonly #entries = new Map<string, Entry>()
  readonly #random: () => number

  constructor(random: () => number) {
    this.#random = random
  }

  add(address: Address, nowMs: number): void {
    const key = addressKey(address)
    if (this.#entries.has(key)) return
    if (this.#entries.size >= MAX_KNOWN) this.#forgetWorst()
    this.#entries.set(key, { host: address.host, port: address.port, failures: 0, nextMs: nowMs, busy: false })
  }

  /** One that is due, at random; it is busy until `failed` or `freed`. */
  take(nowMs: number): Address | undefined {
    const due = [...this.#entries.values()].filter((entry) => !entry.busy && entry.nextMs <= nowMs)
    const entry = due[Math.floor(this.#random() * due.length)]
    if (entry) entry.busy = true
    return entry
  }

  /** It is connected to us already. */
  occupy(address: Address): void {
    const entry = this.#entries.get(addressKey(address))
    if (entry) entry.busy = true
  }

  /** The connection ended: well (`served`) or before it was of use. Back-off doubles, with jitter. */
  freed(address: Address, served: boolean, nowMs: number): void {
    const entry = this.#entries.get(addressKey(address))
    if (!entry) return
    entry.busy = false
    entry.failures = served ? 0 : entry.failures + 1
    const backoffMs = Math.min(LAST_RETRY_MS, FIRST_RETRY_MS * 2 ** entry.failures)
    entry.nextMs = nowMs + backoffMs * (0.5 + this.#random())
  }

  forget(address: Address): void {
    this.#entries.delete(addressKey(address))
  }

  #forgetWorst(): void {
    let worst: [string, Entry] | undefined
    for (const [key, entry] of this.#entries)
      if (!entry.busy && (!worst || entry.failures > worst[1].failures)) worst = [key, entry]
    if (worst) this.#entries.delete(worst[0])
  }
}
