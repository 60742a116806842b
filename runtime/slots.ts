/** Lets at most so many run at once; the others wait in turn. */
export class Slots {
  #free: number
  readonly #waiting: (() => void)[] = []

  constructor(count: number) {
    this.#free = count
  }

  async run<T>(work: () => Promise<T>): Promise<T> {
    if (this.#free > 0) this.#free--
    else await new Promise<void>((resolve) => this.#waiting.push(resolve))
    try {
      return await work()
    } finally {
      // The slot goes straight to who waited longest, so that nobody new comes between.
      const next = this.#waiting.shift()
      if (next) next()
      else this.#free++
    }
  }
}
