import type { Clock } from '../runtime/clock.ts'
import { type Goal, selects } from './goals.ts'
import type { Machine } from './machines.ts'

/** What a poll waits for. */
export interface HeldPoll {
  machine: Machine
  untilMs: number
  /** Goals it has the release of and no grant yet, by `namespace/name`; whether the machine serves meanwhile. */
  waits: { goal: string; serves: boolean }[]
  /** It refused a goal: the next index may let it in. */
  refused: boolean
}

type Woken = 'MayHaveNews' | 'Superseded'
type Entry = HeldPoll & { wake: (why: Woken) => void }

const sweepMs = 250
/** 5,000 a second: more can't be answered, and what else this server does would wait for all of them. */
const turnSize = 100
const turnMs = 20

/**
 * Polls that wait for news. There are as many as the region has machines, so one is a row in a map and a promise: no timer,
 * no signal of its own.
 */
export class HeldPolls {
  readonly #clock: Clock
  readonly #entries = new Map<string, Entry>()
  #closing = false

  constructor(clock: Clock) {
    this.#clock = clock
  }

  get size(): number {
    return this.#entries.size
  }

  /** Nobody is held any more: the server stops. */
  get closing(): boolean {
    return this.#closing
  }

  /**
   * Resolves when there may be news, its time is over, or `release` is called; `Superseded` when its machine polls anew.
   */
  hold(poll: HeldPoll): { news: Promise<Woken>; release: () => void } {
    const { name } = poll.machine
    const { promise, resolve } = Promise.withResolvers<Woken>()
    this.#entries.get(name)?.wake('Superseded')
    const entry: Entry = {
      ...poll,
      wake: (why) => {
        if (this.#entries.get(name) === entry) this.#entries.delete(name)
        resolve(why)
      },
    }
    if (this.#closing) resolve('MayHaveNews')
    else this.#entries.set(name, entry)
    return { news: promise, release: () => entry.wake('MayHaveNews') }
  }

  /** These goals are new, or changed. */
  goalsChanged(changed: Goal[]): void {
    this.#wake(({ machine }) => changed.some(({ payload }) => selects(payload, machine)))
  }

  indexChanged(): void {
    this.#wake(({ refused }) => refused)
  }

  /** So many machines may activate this goal now: of all, and of those that serve. */
  admit(goal: string, room: { all: number; serving: number }): void {
    let { all, serving } = room
    this.#wake(({ waits }) => {
      const wait = all > 0 ? waits.find((each) => each.goal === goal) : undefined
      if (!wait || (wait.serves && serving <= 0)) return false
      all--
      if (wait.serves) serving--
      return true
    })
  }

  /** Lets go whose time is over, until the signal; then everybody. */
  async run(signal: AbortSignal): Promise<void> {
    while (!signal.aborted) {
      const nowMs = this.#clock.monotonic()
      this.#wake(({ untilMs }) => untilMs <= nowMs)
      await this.#clock.sleep(sweepMs, signal).catch(() => undefined)
    }
    this.#closing = true
    this.#wake(() => true)
  }

  #wake(those: (entry: HeldPoll) => boolean): void {
    void this.#wakeInTurn([...this.#entries.values()].filter(those))
  }

  async #wakeInTurn(entries: Entry[]): Promise<void> {
    for (let at = 0; at < entries.length; at += turnSize) {
      if (at > 0) await this.#clock.sleep(turnMs)
      for (const entry of entries.slice(at, at + turnSize)) entry.wake('MayHaveNews')
    }
  }
}
