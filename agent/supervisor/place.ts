import { existsSync } from 'node:fs'
import { rm } from 'node:fs/promises'
import { uptime } from 'node:os'
import { join, relative } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { Application, endMarked } from './application.ts'
import { rotate } from './applicationLog.ts'
import { readJson, removeLeftovers, switchLink, writeDurably } from './durable.ts'
import { HealthWatch } from './health.ts'
import { bootId, type ProcessId } from './processes.ts'
import { type ActivationRequest, type Outcome, type PlaceStatus, placeFiles, type Run } from './protocol.ts'

const maxLogBytes = 16 << 20
const restartMs = { first: 1000, last: 30_000, forgottenAfter: 60_000 }
/** A restarted application counts as healthy again after so long, or minHealthy if that is less. */
const healthyAgainMs = 10_000

/** An activation under way, written before anything is touched. */
interface Journal {
  request: ActivationRequest
  /** Going back, and why. */
  back?: string
  bootId: string
  /** Seconds of uptime. */
  beganAt: number
  interruptions: number
}

/** All a place remembers; one file, replaced as a whole. */
interface PlaceState {
  accepted?: Run
  /** The last process started, of this template. */
  application?: { id: ProcessId; template: string }
  journal?: Journal
  outcome?: Outcome
  /** A template whose activation was lost with the power before: the second time counts as its failure. */
  interrupted?: string
}

type Log = (message: string, fields?: object) => void

/**
 * One place: idle (`accepted` runs, and is restarted when it crashes) or activating (journal written):
 *
 *   forward: stop old → switch current → start new → healthy for minHealthy ──▶ accepted = new
 *      └─ exit, or deadline ─▶ back: stop new → switch current → start old → healthy ──▶ accepted stays old
 */
export class Place {
  readonly #dir: string
  readonly #mark: string
  readonly #log: Log
  #state: PlaceState
  #application: Application | undefined
  #watch: HealthWatch | undefined
  #activation: Promise<void> | undefined
  #unhealthySinceMs = performance.now()
  #startedMs = 0
  #restartAfterMs = restartMs.first
  #ending = false

  private constructor(dir: string, mark: string, o: { log: Log; state: PlaceState }) {
    this.#dir = dir
    this.#mark = mark
    this.#log = o.log
    this.#state = o.state
  }

  /**
   * Takes the place over from whoever had it: ends with the accepted release running, or goes on with an activation.
   * `over` is called when nothing runs here any more and the folder was deleted.
   */
  static async open(dir: string, { mark, log, over }: { mark: string; log: Log; over: () => void }): Promise<Place> {
    await removeLeftovers(join(dir, placeFiles.current))
    const stateFile = join(dir, placeFiles.control, placeFiles.state)
    await removeLeftovers(stateFile)
    const state = ((await readJson(stateFile)) ?? {}) as PlaceState
    const place = new Place(dir, mark, { log, state })
    await place.#recover()
    void place.#keepRunning(over)
    return place
  }

  async #recover(): Promise<void> {
    const { application, journal, accepted } = this.#state
    if (application) this.#application = Application.adopt(application.id, this.#mark)
    // Started by a supervisor that was killed before it could write down the process's id.
    if (!this.#application) await endMarked(this.#mark)
    if (journal) {
      const { run } = journal.request
      const ageMs = (uptime() - journal.beganAt) * 1000
      const fresh = journal.bootId === bootId() && ageMs < run.deadlineMs + run.stop.timeoutMs
      journal.interruptions++
      this.#log('found an interrupted activation', { id: journal.request.id, fresh, back: journal.back })
      this.#activation = this.#perform(journal, fresh && journal.interruptions <= 2)
    } else if (accepted) {
      await this.#switch(accepted.release)
      if (this.#application && application?.template === accepted.template) this.#observe(accepted, 0)
      else await this.#replaceBy(accepted, accepted).catch((error: unknown) => this.#failedToStart(error))
    }
  }

  status(): PlaceStatus {
    const { accepted, journal, outcome } = this.#state
    const healthy = !journal && accepted !== undefined && this.#healthy()
    if (healthy) this.#unhealthySinceMs = performance.now()
    return {
      supervisorPid: process.pid,
      ...(accepted && { accepted: { template: accepted.template, release: accepted.release } }),
      ...(this.#application?.end === undefined && this.#application && { applicationPid: this.#application.id.pid }),
      ...(healthy && { running: accepted.template }),
      ...(!healthy && accepted && { unhealthyForMs: performance.now() - this.#unhealthySinceMs }),
      ...(journal && {
        activating: {
          id: journal.request.id,
          goal: journal.request.goal,
          revision: journal.request.revision,
          template: journal.request.run.template,
        },
      }),
      ...(outcome && { outcome }),
    }
  }

  /** Begins an activation, unless this very one was performed already. Throws an Error when another one is under way. */
  async activate(request: ActivationRequest): Promise<void> {
    const { journal, outcome, accepted } = this.#state
    if (journal?.request.id === request.id || outcome?.id === request.id) return
    if (journal || this.#activation) throw new Error(`activation ${journal?.request.id} is under way`)
    if (this.#ending) throw new Error('the supervisor is ending')
    if (accepted?.template === request.run.template && this.#healthy()) {
      await this.#save({ ...this.#state, outcome: ended(request, 'Healthy') })
      return
    }
    const begun: Journal = { request, bootId: bootId(), beganAt: uptime(), interruptions: 0 }
    await this.#save({ ...this.#state, journal: begun })
    this.#activation = this.#perform(begun, true)
  }

  /** Stops the application; what was accepted is started again by the next supervisor. */
  async shutdown(): Promise<void> {
    this.#ending = true
    await this.#activation
    const run = this.#state.journal?.request.run ?? this.#state.accepted
    if (run) await this.#stop(run)
  }

  async #perform(journal: Journal, forward: boolean): Promise<void> {
    const { request } = journal
    const interrupted = !forward && journal.back === undefined
    try {
      if (forward && journal.back === undefined) {
        const problem = await this.#forward(request.run)
        if (this.#ending) return
        if (problem === undefined) {
          const { journal: _, interrupted: __, ...rest } = this.#state
          await this.#finish({ ...rest, accepted: request.run, outcome: ended(request, 'Healthy') })
          return
        }
        journal.back = problem
      }
      journal.back ??= 'the activation was interrupted'
      this.#log('going back', { id: request.id, why: journal.back })
      await this.#trySave({ ...this.#state, journal })
      await this.#back(journal, interrupted)
    } catch (error) {
      this.#log('activation failed', { id: request.id, error: String(error) })
      const { journal: _, ...rest } = this.#state
      if (!this.#ending) await this.#finish({ ...rest, outcome: ended(request, 'Failed', String(error)) })
    } finally {
      this.#activation = undefined
    }
  }

  /** What went wrong, or undefined. */
  async #forward(run: Run): Promise<string | undefined> {
    const running = this.#application?.end === undefined && this.#state.application?.template === run.template
    const deadlineMs = performance.now() + run.deadlineMs
    try {
      if (running && this.#state.accepted?.template !== run.template) this.#observe(run, run.minHealthyMs)
      else await this.#replaceBy(run, this.#state.accepted ?? run)
    } catch (error) {
      return `not started: ${(error as Error).message}`
    }
    return this.#becomesHealthy(deadlineMs + (running ? 0 : run.stop.timeoutMs))
  }

  async #back({ request, back }: Journal, interrupted: boolean): Promise<void> {
    const { accepted } = this.#state
    const { journal: _, ...rest } = this.#state
    if (!accepted) {
      await this.#stop(request.run)
      await rm(join(this.#dir, placeFiles.current), { force: true })
      await this.#finish({ ...rest, outcome: ended(request, interrupted ? 'Interrupted' : 'Failed', back) })
      return
    }
    let problem: string | undefined
    try {
      const { application } = this.#state
      if (this.#application?.end === undefined && application?.template === accepted.template) {
        await this.#switch(accepted.release)
        this.#observe(accepted, 0)
      } else await this.#replaceBy(accepted, request.run)
      problem = await this.#becomesHealthy(performance.now() + accepted.deadlineMs)
    } catch (error) {
      problem = (error as Error).message
    }
    if (this.#ending) return
    const { journal: __, ...now } = this.#state
    const template = request.run.template
    if (problem !== undefined) {
      const message = `${back}; the old release does not work either: ${problem}`
      await this.#finish({ ...now, outcome: ended(request, 'Failed', message) })
    } else if (interrupted && this.#state.interrupted !== template) {
      await this.#finish({ ...now, interrupted: template, outcome: ended(request, 'Interrupted', back) })
    } else await this.#finish({ ...now, outcome: ended(request, 'RolledBack', back) })
  }

  /** Stops what runs (as `stopping` says), switches `current`, starts `run`. */
  async #replaceBy(run: Run, stopping: Run): Promise<void> {
    await this.#stop(stopping)
    await this.#switch(run.release)
    if (this.#ending) return
    this.#startedMs = performance.now()
    const application = await Application.start(run, {
      link: join(this.#dir, placeFiles.current),
      logFile: join(this.#dir, placeFiles.log),
      mark: this.#mark,
    })
    this.#application = application
    const again = this.#state.accepted?.template === run.template && !this.#state.journal
    this.#observe(run, again ? Math.min(run.minHealthyMs, healthyAgainMs) : run.minHealthyMs)
    await this.#trySave({ ...this.#state, application: { id: application.id, template: run.template } })
    this.#log('started', { template: run.template, applicationPid: application.id.pid })
  }

  async #stop(run: Run): Promise<void> {
    this.#watch?.stop()
    if (this.#application) await this.#application.stop(run.stop)
    else await endMarked(this.#mark)
    this.#application = undefined
  }

  async #switch(release: string): Promise<void> {
    await switchLink(join(this.#dir, placeFiles.current), relative(this.#dir, release))
  }

  #observe(run: Run, steadyAfterMs: number): void {
    if (!this.#application) return
    this.#watch?.stop()
    this.#watch = new HealthWatch(run, this.#application, steadyAfterMs)
  }

  #healthy(): boolean {
    return this.#application !== undefined && this.#application.end === undefined && (this.#watch?.steady ?? false)
  }

  async #becomesHealthy(deadlineMs: number): Promise<string | undefined> {
    while (!this.#healthy()) {
      if (this.#ending) return 'the supervisor is ending'
      if (this.#application?.end !== undefined) return `the application ended with ${this.#application.end}`
      if (performance.now() > deadlineMs) return `not healthy within its deadline: ${this.#watch?.problem}`
      await delay(50)
    }
    return undefined
  }

  /** Starts the accepted release again when it ended, and keeps its log short; until the place's folder is gone. */
  async #keepRunning(over: () => void): Promise<void> {
    for (let tick = 0; !this.#ending; tick++) {
      await delay(250)
      if (tick % 4 === 0)
        await rotate(join(this.#dir, placeFiles.log), maxLogBytes).catch((error: unknown) =>
          this.#log('log not rotated', { error: String(error) }),
        )
      const { accepted } = this.#state
      if (this.#activation || !accepted || this.#ending) continue
      if (this.#application && this.#application.end === undefined) continue
      const ranMs = performance.now() - this.#startedMs
      if (ranMs > restartMs.forgottenAfter) this.#restartAfterMs = restartMs.first
      if (ranMs < this.#restartAfterMs) continue
      if (!existsSync(join(this.#dir, placeFiles.control))) return over()
      this.#log('the application ended', { how: this.#application?.end })
      this.#restartAfterMs = Math.min(2 * this.#restartAfterMs, restartMs.last)
      await this.#replaceBy(accepted, accepted).catch((error: unknown) => this.#failedToStart(error))
    }
  }

  #failedToStart(error: unknown): void {
    this.#log('not started', { error: String(error) })
  }

  async #finish(state: PlaceState): Promise<void> {
    if (this.#ending) return
    this.#log('activation ended', { ...state.outcome })
    this.#restartAfterMs = restartMs.first
    this.#unhealthySinceMs = performance.now()
    await this.#trySave(state)
  }

  async #save(state: PlaceState): Promise<void> {
    await writeDurably(join(this.#dir, placeFiles.control, placeFiles.state), JSON.stringify(state))
    this.#state = state
  }

  /** Mid-activation a full disk must not stop us: what is in memory holds until it can be written. */
  async #trySave(state: PlaceState): Promise<void> {
    this.#state = state
    await this.#save(state).catch((error: unknown) => this.#log('state not written', { error: String(error) }))
  }
}

function ended(request: ActivationRequest, result: Outcome['result'], message?: string): Outcome {
  const { id, goal, uid, revision, run } = request
  return {
    id,
    goal,
    ...(uid !== undefined && { uid }),
    revision,
    template: run.template,
    result,
    ...(message !== undefined && { message: message.slice(0, 1000) }),
  }
}
