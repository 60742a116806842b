import { hash } from 'node:crypto'

/** Failed pieces whose digests we keep at once; more are judged by their single sender alone. */
const MAX_EVIDENCE = 64

interface Evidence<Sender> {
  unitDigests: string[]
  senders: Sender[]
}

/**
 * Who sent wrong bytes. A piece that fails its hash and came from one sender is that sender's; one that came from
 * several is fetched again from a single one, and when that one is right, the units that differ name the liars.
 */
export class Blame<Sender> {
  readonly #evidence = new Map<number, Evidence<Sender>>()
  readonly #unitBytes: number

  constructor(unitBytes: number) {
    this.#unitBytes = unitBytes
  }

  /** Whether this piece has to come whole from one peer. */
  wantsOneSender(pieceIndex: number): boolean {
    return this.#evidence.has(pieceIndex)
  }

  /** A piece failed. @returns the guilty sender, if that is certain. */
  failed(pieceIndex: number, bytes: Uint8Array, senders: Sender[]): Sender | undefined {
    const first = senders[0]
    if (senders.every((sender) => sender === first)) return first
    if (this.#evidence.size < MAX_EVIDENCE)
      this.#evidence.set(pieceIndex, { unitDigests: this.#digests(bytes), senders: [...senders] })
    return undefined
  }

  /** A piece came right. @returns those who had sent other bytes for it. */
  succeeded(pieceIndex: number, bytes: Uint8Array): Set<Sender> {
    const evidence = this.#evidence.get(pieceIndex)
    const guilty = new Set<Sender>()
    if (!evidence) return guilty
    this.#evidence.delete(pieceIndex)
    this.#digests(bytes).forEach((digest, unit) => {
      const sender = evidence.senders[unit]
      if (digest !== evidence.unitDigests[unit] && sender !== undefined) guilty.add(sender)
    })
    return guilty
  }

  #digests(bytes: Uint8Array): string[] {
    const digests: string[] = []
    for (let at = 0; at < bytes.length; at += this.#unitBytes)
      digests.push(hash('sha256', bytes.subarray(at, at + this.#unitBytes), 'base64'))
    return digests
  }
}
