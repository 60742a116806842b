import type { FastifyRequest } from 'fastify'
import { type GoalReport, type Grant, type PollAnswer, type PollRequest, pollRequest } from '../api/fleetApi.ts'
import type { Clock } from '../runtime/clock.ts'
import type { Metrics } from '../runtime/metrics.ts'
import type { Server } from '../runtime/server.ts'
import type { Database } from '../runtime/sql.ts'
import type { Callers } from './callers.ts'
import type { Listening } from './counts.ts'
import { find, type Goal, type Goals, isOf, keyOf } from './goals.ts'
import { Granter } from './grant.ts'
import type { HeldPolls } from './heldPolls.ts'
import type { HubIndex } from './hubIndex.ts'
import { Inbox } from './inbox.ts'
import type { Machine } from './machines.ts'

export interface PollRouteOptions {
  database: Database
  goals: Goals
  index: HubIndex
  held: HeldPolls
  callers: Callers
  clock: Clock
  metrics: Metrics
  /** How soon a machine that is not held polls again. */
  pollMs: number
  /** How long one is held while there is nothing new, at most. */
  holdMs: number
  beginWithinMs: number
  listening: () => Listening
  random?: () => number
}

/** Between an answer to a machine that is held and its next question. */
const gapMs = 250

/**
 * POST /v1/agent/poll. What the machine reports is written down; what is new for it is the answer. While nothing is, one
 * that asks to wait is held: a goal reaches it as soon as this server has it, and a grant when it is its turn.
 */
export function registerPollRoute(server: Server, options: PollRouteOptions): void {
  const { database, goals, index, held, clock, metrics, random = Math.random } = options
  const inbox = new Inbox(database, goals)
  const granter = new Granter(database)
  const grants = metrics.counter('grants_total', 'Permissions to activate that were given.')
  const holding = metrics.gauge('held_polls', 'Machines that wait for an answer here.')

  server.post('/v1/agent/poll', async (request, reply): Promise<PollAnswer> => {
    const name = await options.callers.identify(request.headers)
    const poll = pollRequest.parse(request.body)
    forget(request)
    const machine: Machine = { name, labels: poll.labels, namespaces: poll.namespaces }
    await inbox.take(machine, poll)
    const mayHoldMs = Math.min(poll.waitMs ?? 0, options.holdMs)
    if (mayHoldMs === 0) return answer(await newsFor(name, poll, lookFor(machine, poll)))
    const untilMs = clock.monotonic() + mayHoldMs * (0.8 + random() * 0.2)
    let release: () => void = () => undefined
    reply.raw.on('close', () => release())
    for (let woken = false; ; woken = true) {
      const look = lookFor(machine, poll)
      // Held before it is looked for, so that no news goes by in between.
      const entry = held.hold({ machine, untilMs, waits: look.waits.map(toWait), refused: poll.goals.some(isRefusal) })
      const news = await newsFor(name, poll, { ...look, butRefused: !woken })
      if (news || untilMs <= clock.monotonic() || held.closing || reply.raw.destroyed) {
        entry.release()
        return answer(news, { waits: true })
      }
      release = entry.release
      holding.set(held.size)
      const why = await entry.news
      holding.set(held.size)
      if (why === 'Superseded') return answer(undefined, { waits: true })
    }
  })

  function answer(news: Omit<PollAnswer, 'pollAfterMs'> | undefined, { waits = false } = {}): PollAnswer {
    // When this server stops they don't all come back together.
    const pollAfterMs = held.closing ? options.pollMs * random() : (waits ? gapMs : options.pollMs) * jitter()
    return { goals: [], grants: [], ...news, pollAfterMs: Math.round(pollAfterMs) }
  }
  const jitter = () => 0.8 + random() * 0.4

  function lookFor(machine: Machine, poll: PollRequest): Look {
    const selecting = goals.selecting(machine)
    return { selecting, waits: waitsOf(poll, selecting) }
  }

  async function newsFor(
    machine: string,
    { goals: reports }: PollRequest,
    { selecting, waits, butRefused = false }: Look & { butRefused?: boolean },
  ): Promise<Omit<PollAnswer, 'pollAfterMs'> | undefined> {
    const given = waits.length > 0 ? await grantsFor(machine, waits) : []
    const reportOf = (goal: Goal) => find(reports, goal.payload)
    const unknown = selecting.filter((goal) => {
      const report = reportOf(goal)
      if (report?.sequence === goal.payload.sequence) return false
      return !(butRefused && report && isRefusal(report))
    })
    if (unknown.length === 0 && given.length === 0) return undefined
    // Who holds a goal takes a later one by its sequence; the index, of all the region's goals, is for the others.
    const holdsAll = unknown.map(reportOf).every((report) => report && report.sequence > 0 && !isRefusal(report))
    return {
      ...(!holdsAll && index.envelope !== undefined && { index: index.envelope }),
      goals: unknown.map(({ envelope }) => envelope),
      grants: given,
    }
  }

  async function grantsFor(machine: string, waits: Waiting[]): Promise<Grant[]> {
    const given: Grant[] = []
    for (const { goal } of waits) {
      const { payload } = goal
      if (!index.fresh || !index.names(payload)) continue
      // Nothing begins later than the index that allows it is good for.
      const beginWithinMs = () => Math.floor(Math.min(options.beginWithinMs, index.leftMs))
      const grant = await granter.ask({ ...payload, trusted: index.trusts(payload) }, machine, () => ({
        beginWithinMs: beginWithinMs(),
        listening: options.listening(),
      }))
      if (!grant) continue
      given.push({ ...grant, beginWithinMs: Math.min(grant.beginWithinMs, beginWithinMs()) })
      grants.inc()
    }
    return given
  }
}

/** A request that is held is read: 20,000 of them would keep what they were read from. */
function forget(request: FastifyRequest): void {
  request.body = undefined
  request.raw.rawHeaders.length = 0
  request.raw.headers = noHeaders
}

const noHeaders = {}

/** The goals that select a machine, and those of them it waits to activate. */
interface Look {
  selecting: Goal[]
  waits: Waiting[]
}

interface Waiting {
  goal: Goal
  serves: boolean
}

const toWait = ({ goal, serves }: Waiting) => ({ goal: keyOf(goal.payload), serves })

/** It may have been sent a goal that it did not take: sent again at once, it would ask again at once. */
const isRefusal = ({ reason }: GoalReport) => reason !== undefined

/** The goals whose release the machine has and doesn't run: only these are worth a transaction. */
function waitsOf({ goals: reports }: PollRequest, selecting: Goal[]): Waiting[] {
  return selecting.flatMap((goal) => {
    const { templateHash } = goal.payload
    const waiting = reports.find(
      (report) => isOf(report, goal.payload) && report.state === 'Fetched' && report.template === templateHash,
    )
    return waiting ? [{ goal, serves: waiting.running !== undefined }] : []
  })
}
