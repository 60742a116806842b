import { Buffer } from 'node:buffer'

const replacement = Buffer.from('***')
/** What is shorter is in every other line. */
const shortestLength = 4

/** Replaces secrets in a stream of bytes by `***`, also where chunks cut them. */
export class Mask {
  readonly #secrets: Buffer[]
  #held: Buffer = Buffer.alloc(0)

  /** Of a secret with several lines, each line is one. Those shorter than 4 characters are not masked. */
  constructor(secrets: string[]) {
    const all = secrets.flatMap((secret) => [secret, ...secret.split(/\r?\n/), encodeURIComponent(secret)])
    this.#secrets = [...new Set(all.map((it) => it.trim()))]
      .filter((secret) => secret.length >= shortestLength)
      .sort((a, b) => b.length - a.length)
      .map((secret) => Buffer.from(secret))
  }

  /** What of the stream can be shown now: an end that may be the beginning of a secret is held back. */
  push(chunk: Buffer): Buffer {
    const bytes = this.#held.length === 0 ? chunk : Buffer.concat([this.#held, chunk])
    const masked = this.#replace(bytes)
    const length = this.#undecided(masked)
    this.#held = Buffer.from(masked.subarray(masked.length - length))
    return masked.subarray(0, masked.length - length)
  }

  /** The rest, at the stream's end. */
  end(): Buffer {
    const rest = this.#held
    this.#held = Buffer.alloc(0)
    return rest
  }

  /** A whole text. */
  text(text: string): string {
    return this.#replace(Buffer.from(text)).toString()
  }

  #replace(bytes: Buffer): Buffer {
    let masked = bytes
    for (const secret of this.#secrets) {
      const parts: Buffer[] = []
      let from = 0
      for (let at = masked.indexOf(secret); at >= 0; at = masked.indexOf(secret, from)) {
        parts.push(masked.subarray(from, at), replacement)
        from = at + secret.length
      }
      if (from > 0) masked = Buffer.concat([...parts, masked.subarray(from)])
    }
    return masked
  }

  #undecided(bytes: Buffer): number {
    let longest = 0
    for (const secret of this.#secrets) {
      for (let length = Math.min(secret.length - 1, bytes.length); length > longest; length--) {
        if (bytes.subarray(bytes.length - length).equals(secret.subarray(0, length))) longest = length
      }
    }
    return longest
  }
}
