const headBytes = 4 << 20
const tailBytes = 1 << 20
const flushBytes = 256 << 10

/**
 * A build's output on its way to the hub: its head as it comes, then only the tail is kept, with a mark for what is
 * left out between. Bounded memory, whatever a build prints; secrets are masked.
 */
export class BuildLog {
  readonly #secrets: string[]
  readonly #send: (offset: number, text: string) => Promise<unknown>
  #held = ''
  #pending: Buffer[] = []
  #pendingBytes = 0
  #sentBytes = 0
  #tail: Buffer[] = []
  #tailSize = 0
  #leftOutBytes = 0
  #sending: Promise<unknown> = Promise.resolve()

  constructor(options: { secrets: string[]; send: (offset: number, text: string) => Promise<unknown> }) {
    this.#secrets = options.secrets.filter((secret) => secret.length >= 4)
    this.#send = options.send
  }

  write(text: string): void {
    // A secret may be cut in two by the chunks it comes in: what could be its beginning waits for the rest.
    const whole = this.#held + text
    const keep = Math.max(0, ...this.#secrets.map((secret) => secret.length - 1))
    const cut = keep === 0 ? whole.length : Math.max(whole.lastIndexOf('\n') + 1, whole.length - keep)
    const masked = this.#mask(whole.slice(0, cut))
    this.#held = whole.slice(cut)
    this.#append(Buffer.from(masked))
  }

  /** The last lines, for a message. */
  lastLines(maxBytes: number): string {
    const recent = Buffer.concat([...this.#pending, ...this.#tail]).subarray(-maxBytes)
    return (recent.toString() + this.#mask(this.#held)).slice(-maxBytes).trim()
  }

  /** Sends what has come of the head. Never throws: a log that can't be sent must not fail a build. */
  flush(): Promise<unknown> {
    const bytes = Buffer.concat(this.#pending)
    this.#pending = []
    this.#pendingBytes = 0
    // In parts: the hub takes a million characters a call.
    for (let at = 0; at < bytes.length; at += flushBytes) {
      const part = bytes.subarray(at, at + flushBytes)
      const offset = this.#sentBytes
      this.#sentBytes += part.length
      this.#sending = this.#sending.then(() => this.#send(offset, part.toString())).catch(() => undefined)
    }
    return this.#sending
  }

  /** Sends the rest: what was held back, the mark, the tail. */
  async close(): Promise<void> {
    this.#append(Buffer.from(this.#mask(this.#held)))
    this.#held = ''
    await this.flush()
    if (this.#tailSize === 0) return
    const mark = this.#leftOutBytes > 0 ? `\n… ${this.#leftOutBytes} bytes left out …\n` : ''
    this.#pending = [Buffer.from(mark), ...this.#tail]
    await this.flush()
  }

  #append(bytes: Buffer): void {
    if (bytes.length === 0) return
    const room = Math.max(0, headBytes - this.#sentBytes - this.#pendingBytes)
    if (room > 0) {
      const head = bytes.subarray(0, room)
      this.#pending.push(head)
      this.#pendingBytes += head.length
      if (this.#pendingBytes >= flushBytes) void this.flush()
    }
    if (bytes.length > room) this.#appendTail(bytes.subarray(room))
  }

  #appendTail(bytes: Buffer): void {
    this.#tail.push(Buffer.from(bytes))
    this.#tailSize += bytes.length
    while (this.#tailSize > tailBytes) {
      const [first] = this.#tail
      if (!first) return
      const drop = Math.min(first.length, this.#tailSize - tailBytes)
      if (drop === first.length) this.#tail.shift()
      else this.#tail[0] = first.subarray(drop)
      this.#tailSize -= drop
      this.#leftOutBytes += drop
    }
  }

  #mask(text: string): string {
    return this.#secrets.reduce((masked, secret) => masked.replaceAll(secret, '***'), text)
  }
}
