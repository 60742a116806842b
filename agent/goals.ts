import { z } from 'zod'
import { type ErrorCode, ShoalError } from '../api/errors.ts'
import { type GoalPayload, type IndexPayload, openGoal, openIndex } from '../rollout/envelope.ts'
import type { Logger } from '../runtime/log.ts'
import type { Membership } from './enrolment.ts'
import type { AgentState } from './state.ts'

/** A goal this machine was sent and does not act on. */
export interface Refusal {
  namespace: string
  name: string
  reason: ErrorCode
  message: string
}

interface GoalBookOptions {
  membership: Membership
  state: AgentState
  log: Logger
  onRefused(reason: ErrorCode): void
}

export const goalKey = (goal: { namespace: string; name: string }): string => `${goal.namespace}/${goal.name}`

/**
 * The goals this machine holds. Only what the hub signed gets in, for this region, these tenants and these labels, and
 * never anything older than what was seen. A goal that is no longer sent stays: silence never removes anything.
 */
export class GoalBook {
  readonly #o: GoalBookOptions
  readonly #accepted = new Map<string, GoalPayload>()
  #refusals = new Map<string, Refusal>()
  #index: IndexPayload | undefined

  private constructor(options: GoalBookOptions) {
    this.#o = options
  }

  /** Takes up the remembered goals, verifying each again: keys may have been withdrawn. */
  static open(options: GoalBookOptions): GoalBook {
    const book = new GoalBook(options)
    for (const [key, { envelope, released }] of Object.entries(options.state.memory.goals)) {
      if (released) continue
      try {
        const goal = openGoal(envelope, options.membership.verificationKeys)
        book.#checkMeant(goal)
        book.#accepted.set(key, goal)
      } catch (error) {
        options.log.error({ goal: key, err: error }, 'remembered goal not taken up')
      }
    }
    return book
  }

  get accepted(): GoalPayload[] {
    return [...this.#accepted.values()]
  }

  get refusals(): Refusal[] {
    return [...this.#refusals.values()]
  }

  get(key: string): GoalPayload | undefined {
    return this.#accepted.get(key)
  }

  /** Takes in an answer: the index first, for goals may need it. Never throws for what was sent. */
  async take(index: string | undefined, envelopes: string[]): Promise<void> {
    if (index !== undefined) await this.#takeIndex(index)
    const refusals = new Map<string, Refusal>()
    for (const envelope of envelopes) {
      try {
        await this.#takeGoal(envelope)
      } catch (error) {
        const reason = error instanceof ShoalError ? error.code : 'Invalid'
        const name = claimedName(envelope)
        const refusal = { ...name, reason, message: (error as Error).message.slice(0, 1000) }
        refusals.set(goalKey(name), refusal)
        const before = this.#refusals.get(goalKey(name))
        if (before?.reason === reason && before.message === refusal.message) continue
        this.#o.onRefused(reason)
        this.#o.log.error({ goal: goalKey(name), reason, why: refusal.message }, 'goal refused')
      }
    }
    this.#refusals = refusals
  }

  async #takeIndex(envelope: string): Promise<void> {
    const { membership, state, log, onRefused } = this.#o
    try {
      const index = openIndex(envelope, membership.verificationKeys)
      if (index.region !== membership.region) throw new ShoalError('Forbidden', `an index of ${index.region}`)
      if (index.issuedAt < state.memory.indexIssuedAt) throw new ShoalError('Conflict', 'an index older than one seen')
      if (index.issuedAt > state.memory.indexIssuedAt) await state.rememberIndex(index.issuedAt)
      this.#index = index
    } catch (error) {
      // What an index we can't trust says about goals is nothing; the one before stays good.
      onRefused(error instanceof ShoalError ? error.code : 'Invalid')
      log.error({ err: error }, 'index refused')
    }
  }

  async #takeGoal(envelope: string): Promise<void> {
    const { membership, state } = this.#o
    const goal = openGoal(envelope, membership.verificationKeys)
    const key = goalKey(goal)
    this.#checkMeant(goal)
    const known = state.memory.goals[key]
    if (known !== undefined) {
      if (goal.sequence < known.sequence)
        throw new ShoalError('Conflict', `sequence ${goal.sequence} is older than ${known.sequence}`)
      if (goal.sequence === known.sequence && this.#accepted.has(key)) {
        if (known.envelope !== envelope && !samePayload(known.envelope, envelope))
          throw new ShoalError('Conflict', `another goal with sequence ${goal.sequence}`)
        return
      }
    } else if (this.#index?.goals[key]?.sequence !== goal.sequence)
      throw new ShoalError('Unavailable', `the region’s index does not name sequence ${goal.sequence} yet`)
    await this.#takePlace(goal)
    await state.rememberGoal(key, { sequence: goal.sequence, envelope })
    this.#accepted.set(key, goal)
    this.#o.log.info({ goal: key, sequence: goal.sequence, template: goal.templateHash }, 'goal accepted')
  }

  #checkMeant(goal: GoalPayload): void {
    const { membership } = this.#o
    const refuse = (message: string) => new ShoalError('Forbidden', message)
    if (goal.region !== membership.region) throw refuse(`a goal of region ${goal.region}`)
    if (!membership.namespaces.includes(goal.namespace)) throw refuse(`this machine does not serve ${goal.namespace}`)
    for (const [name, value] of Object.entries(goal.selector.matchLabels))
      if (membership.labels[name] !== value) throw refuse(`it selects ${name}=${value}`)
  }

  /** One holder per place: who came first, until the index no longer names it. */
  async #takePlace(goal: GoalPayload): Promise<void> {
    const key = goalKey(goal)
    for (const [other, held] of this.#accepted) {
      if (held.place !== goal.place || other === key) continue
      if (!this.#index || other in this.#index.goals || !(key in this.#index.goals))
        throw new ShoalError('PlaceConflict', `place ${goal.place} is held by ${other}`)
      this.#o.log.info({ place: goal.place, before: other, now: key }, 'place changes hands')
      await this.#o.state.releaseGoal(other)
      this.#accepted.delete(other)
    }
  }
}

const payloadOf = (envelope: string): string => String((JSON.parse(envelope) as { payload?: unknown }).payload)
const samePayload = (a: string, b: string): boolean => payloadOf(a) === payloadOf(b)

const claimed = z.object({ namespace: z.string().max(253), name: z.string().max(253) })

/** What an envelope says it is about, for the log and the report: not to be believed. */
function claimedName(envelope: string): { namespace: string; name: string } {
  try {
    return claimed.parse(JSON.parse(Buffer.from(payloadOf(envelope), 'base64').toString()))
  } catch {
    return { namespace: '', name: '' }
  }
}
