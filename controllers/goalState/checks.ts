import { z } from 'zod'
import type { Gates } from '../../rollout/engine.ts'
import type { Clock } from '../../runtime/clock.ts'

const askEveryMs = 5000
const timeoutMs = 5000
const maxAnswerBytes = 64 << 10
/** An answer is good for so many rounds. */
const goodForRounds = 3

const answer = z.object({ ok: z.boolean(), message: z.string().optional() })

export interface CheckQuestion {
  url: string
  namespace: string
  goal: string
  artifact: string
  revision: number
  /** From 1. */
  wave: number
  region: string
}

interface Known {
  /** When it was last answered. */
  answeredMs: number
  ill?: string
  /** Why it was not answered since. */
  silent: string
  askedMs: number
  asking: boolean
}

/** What the checks of goals answer, region by region; asked in the background while waves soak. */
export class Checks {
  readonly #clock: Clock
  readonly #everyMs: number
  readonly #known = new Map<string, Known>()

  constructor(o: { clock: Clock; everyMs?: number | undefined }) {
    this.#clock = o.clock
    this.#everyMs = o.everyMs ?? askEveryMs
  }

  /** What was answered lately; undefined when all is well in all of these. */
  verdict(questions: CheckQuestion[]): Gates['check'] {
    const found = questions.map((question) => this.#look(question))
    return found.find((each) => each?.is === 'Ill') ?? found.find((each) => each !== undefined)
  }

  /** Nothing of the goal soaks any more. */
  forget(namespace: string, goal: string): void {
    for (const key of this.#known.keys()) if (key.startsWith(`${namespace}/${goal}/`)) this.#known.delete(key)
  }

  #look(question: CheckQuestion): Gates['check'] {
    const { namespace, goal, revision, wave, region } = question
    const key = `${namespace}/${goal}/${revision}/${wave}/${region}`
    const nowMs = this.#clock.monotonic()
    let known = this.#known.get(key)
    if (!known) {
      known = { answeredMs: Number.NEGATIVE_INFINITY, askedMs: Number.NEGATIVE_INFINITY, silent: '', asking: false }
      this.#known.set(key, known)
    }
    if (!known.asking && nowMs - known.askedMs >= this.#everyMs) void this.#ask(question, known)
    if (known.ill !== undefined) return { is: 'Ill', message: `the check of ${region} says: ${known.ill}` }
    if (nowMs - known.answeredMs <= goodForRounds * this.#everyMs) return undefined
    return { is: 'Silent', message: `the check of ${region} has not answered${known.silent && `: ${known.silent}`}` }
  }

  async #ask({ url, ...named }: CheckQuestion, known: Known): Promise<void> {
    known.asking = true
    known.askedMs = this.#clock.monotonic()
    try {
      const target = new URL(url)
      for (const [name, value] of Object.entries(named)) target.searchParams.set(name, String(value))
      const response = await fetch(target, { redirect: 'error', signal: AbortSignal.timeout(timeoutMs) })
      const text = await textOf(response)
      if (response.status !== 200) throw new Error(`it answered ${response.status}`)
      const { ok, message } = answer.parse(JSON.parse(text))
      known.answeredMs = this.#clock.monotonic()
      if (!ok) known.ill = message?.slice(0, 500) || 'not well'
    } catch (error) {
      known.silent = error instanceof z.ZodError ? 'it answered no {"ok": true or false}' : reasonOf(error)
    } finally {
      known.asking = false
    }
  }
}

/** @throws when it is longer than an answer is. */
async function textOf(response: Response): Promise<string> {
  const chunks: Uint8Array[] = []
  let sizeBytes = 0
  for await (const chunk of response.body ?? []) {
    sizeBytes += chunk.length
    if (sizeBytes > maxAnswerBytes) throw new Error('its answer is too long')
    chunks.push(chunk)
  }
  return Buffer.concat(chunks).toString()
}

const reasonOf = (error: unknown): string => {
  const { message, cause } = error as Error
  return cause instanceof Error ? cause.message : message
}
