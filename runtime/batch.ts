import { setTimeout as delay } from 'node:timers/promises'
import { ShoalError } from '../api/errors.ts'

interface Call<In, Out> {
  item: In
  resolve: (result: Out) => void
  reject: (error: unknown) => void
}

/**
 * Runs calls together: what comes while one batch is under way is the next batch, so that a busy queue makes one
 * transaction of many and an idle one answers at once. When a batch fails, each of its calls is tried alone, unless
 * nobody was there to answer.
 */
export class Batch<In, Out> {
  readonly #run: (items: In[]) => Promise<Out[]>
  readonly #max: number
  readonly #gatherMs: number
  #calls: Call<In, Out>[] = []
  #busy = false

  /** `run` gives one result for each item, in their order. `gatherMs`: how long a batch waits for more before it runs. */
  constructor(run: (items: In[]) => Promise<Out[]>, max = 200, gatherMs = 0) {
    this.#run = run
    this.#max = max
    this.#gatherMs = gatherMs
  }

  call(item: In): Promise<Out> {
    const { promise, resolve, reject } = Promise.withResolvers<Out>()
    this.#calls.push({ item, resolve, reject })
    if (!this.#busy) void this.#work()
    return promise
  }

  async #work(): Promise<void> {
    this.#busy = true
    while (this.#calls.length > 0) {
      if (this.#gatherMs > 0 && this.#calls.length < this.#max) await delay(this.#gatherMs)
      const batch = this.#calls.splice(0, this.#max)
      await this.#perform(batch).catch(async (error: unknown) => {
        const away = error instanceof ShoalError && error.code === 'Unavailable'
        if (batch.length === 1 || away) for (const call of batch) call.reject(error)
        else for (const call of batch) await this.#perform([call]).catch(call.reject)
      })
    }
    this.#busy = false
  }

  async #perform(calls: Call<In, Out>[]): Promise<void> {
    const results = await this.#run(calls.map(({ item }) => item))
    for (const [i, call] of calls.entries()) call.resolve(results[i] as Out)
  }
}
