import { Buffer } from 'node:buffer'

/** What is shorter is in every other line. */
const shortestLength = 4

/** Replaces secrets in a stream of bytes by `***`, also where chunks cut them. The leftmost goes first, then the longest. */
export class Mask {
  /** Bytes as latin1: each character is one. */
  readonly #secrets: string[]
  readonly #any: RegExp
  #held = ''

  /** Of a secret with several lines, each line is one. Those shorter than 4 characters are not masked. */
  constructor(secrets: string[]) {
    const all = secrets.flatMap((secret) => [secret, ...secret.split(/\r?\n/), encodeURIComponent(secret)])
    this.#secrets = [...new Set(all.map((it) => it.trim()))]
      .filter((secret) => secret.length >= shortestLength)
      .map((secret) => Buffer.from(secret).toString('latin1'))
      .sort((a, b) => b.length - a.length)
    this.#any = new RegExp(this.#secrets.map((secret) => RegExp.escape(secret)).join('|'), 'g')
  }

  get #longest(): number {
    return this.#secrets[0]?.length ?? 0
  }

  /** What of the stream can be shown now: an end that may be the beginning of a secret is held back. */
  push(chunk: Buffer): Buffer {
    if (this.#secrets.length === 0) return chunk
    const text = this.#held + chunk.toString('latin1')
    let shown = ''
    let at = 0
    for (;;) {
      this.#any.lastIndex = at
      const found = this.#any.exec(text)
      const undecided = found && found.index < text.length - this.#longest ? text.length : this.#undecided(text, at)
      if (!found || found.index >= undecided) {
        this.#held = text.slice(undecided)
        return Buffer.from(shown + text.slice(at, undecided), 'latin1')
      }
      shown += `${text.slice(at, found.index)}***`
      at = found.index + found[0].length
    }
  }

  /** The rest, at the stream's end. */
  end(): Buffer {
    const rest = this.#held
    this.#held = ''
    return Buffer.from(this.#whole(rest), 'latin1')
  }

  /** A whole text. */
  text(text: string): string {
    return Buffer.from(this.#whole(Buffer.from(text).toString('latin1')), 'latin1').toString()
  }

  #whole = (text: string) => (this.#secrets.length === 0 ? text : text.replaceAll(this.#any, '***'))

  /** From where on the text, to its end, is the beginning of a secret; its length when nowhere. */
  #undecided(text: string, from: number): number {
    for (let at = Math.max(from, text.length - this.#longest); at < text.length; at++) {
      const end = text.slice(at)
      if (this.#secrets.some((secret) => secret.length > end.length && secret.startsWith(end))) return at
    }
    return text.length
  }
}
