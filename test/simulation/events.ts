/** Events in the order of their time: a binary heap over plain arrays, for tens of millions of them. */
export class Events {
  #times = new Float64Array(1024)
  /** What each is, in as many numbers as it takes. */
  #payloads: [Int32Array, Int32Array, Int32Array] = [new Int32Array(1024), new Int32Array(1024), new Int32Array(1024)]
  #size = 0
  nowMs = 0
  /** Of the event that `next` came to. */
  kind = 0
  machine = 0
  detail = 0

  add(atMs: number, kind: number, machine: number, detail = 0): void {
    if (this.#size === this.#times.length) this.#grow()
    let at = this.#size++
    while (at > 0) {
      const parent = (at - 1) >> 1
      if ((this.#times[parent] ?? 0) <= atMs) break
      this.#move(parent, at)
      at = parent
    }
    this.#put(at, atMs, [kind, machine, detail])
  }

  /** Goes on to the next event. @returns false when there is none. */
  next(): boolean {
    if (this.#size === 0) return false
    const [kinds, machines, details] = this.#payloads
    this.nowMs = this.#times[0] ?? 0
    this.kind = kinds[0] ?? 0
    this.machine = machines[0] ?? 0
    this.detail = details[0] ?? 0
    this.#size--
    const last = this.#size
    const lastMs = this.#times[last] ?? 0
    let at = 0
    for (let child = 1; child < last; child = 2 * at + 1) {
      if (child + 1 < last && (this.#times[child + 1] ?? 0) < (this.#times[child] ?? 0)) child++
      if ((this.#times[child] ?? 0) >= lastMs) break
      this.#move(child, at)
      at = child
    }
    if (at !== last) this.#move(last, at)
    return true
  }

  #move(from: number, to: number): void {
    this.#times[to] = this.#times[from] ?? 0
    for (const payload of this.#payloads) payload[to] = payload[from] ?? 0
  }

  #put(at: number, atMs: number, numbers: [number, number, number]): void {
    this.#times[at] = atMs
    this.#payloads.forEach((payload, i) => {
      payload[at] = numbers[i] ?? 0
    })
  }

  #grow(): void {
    const grown = <T extends Float64Array | Int32Array>(array: T, empty: T): T => {
      empty.set(array)
      return empty
    }
    const size = 2 * this.#size
    this.#times = grown(this.#times, new Float64Array(size))
    const [a, b, c] = this.#payloads
    this.#payloads = [grown(a, new Int32Array(size)), grown(b, new Int32Array(size)), grown(c, new Int32Array(size))]
  }
}
