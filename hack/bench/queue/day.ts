/** One day of a build farm, simulated with the function that scales the real one. */
import { type Need, type ScalePolicy, wantedWorkers } from '../../../queue/autoscale.ts'

const hour = 3_600_000
const day = 24 * hour
const stepMs = 1000
/** The hub looks so often. */
const lookMs = 10_000
/** Arrivals are averaged over so long. */
const windowMs = 10 * 60_000

export interface DayOptions {
  seed: number
  builds: number
  meanBuildMs: number
  /** Scaled by a policy of one class, or so many all the time. */
  fleet: ScalePolicy | number
}

export interface DayResult {
  builds: number
  /** The sum of build times. */
  buildHours: number
  /** From the wish for a worker until it is gone, summed. */
  workerHours: number
  /** From the push to the start. */
  p95WaitMs: number
  mostWorkers: number
}

interface Build {
  atMs: number
  tookMs: number
}

interface Worker {
  /** When it can take the next build. */
  freeMs: number
  building: boolean
}

/** A day from midnight until its last build is done. */
export function simulateDay({ seed, builds, meanBuildMs, fleet }: DayOptions): DayResult {
  const pushes = pushesOfDay(random(seed), { builds, meanBuildMs })
  const farm = typeof fleet === 'number' ? new Farm(fleet) : new Farm(0)
  const waiting: Build[] = []
  const waits: number[] = []
  let pushed = 0
  let workerMs = 0
  let most = 0
  let recent: Need[] = []
  for (let nowMs = 0; nowMs < day || waiting.length > 0 || farm.busy > 0; nowMs += stepMs) {
    for (let next = pushes[pushed]; next && next.atMs <= nowMs; next = pushes[++pushed]) waiting.push(next)
    farm.endBuilds(nowMs)
    while (waiting[0] && farm.start(waiting[0], nowMs)) waits.push(nowMs - (waiting.shift()?.atMs ?? nowMs))
    if (typeof fleet !== 'number' && nowMs % lookMs === 0) {
      const since = pushes.slice(0, pushed).findLastIndex(({ atMs }) => atMs <= nowMs - windowMs) + 1
      const wish = wantedWorkers(
        fleet,
        {
          nowMs,
          ready: waiting.length,
          arrivalsPerMs: (pushed - since) / windowMs,
          buildMs: meanBuildMs,
          busy: { [fleet.classes[0]?.name ?? '']: farm.busy },
        },
        recent,
      )
      recent = wish.recent
      farm.resize(Object.values(wish.workers)[0] ?? 0, nowMs + fleet.startMs)
    }
    workerMs += farm.size * stepMs
    most = Math.max(most, farm.size)
  }
  waits.sort((a, b) => a - b)
  return {
    builds: waits.length,
    buildHours: pushes.reduce((total, { tookMs }) => total + tookMs, 0) / hour,
    workerHours: workerMs / hour,
    p95WaitMs: waits[Math.floor(waits.length * 0.95)] ?? 0,
    mostWorkers: most,
  }
}

class Farm {
  #workers: Worker[]

  constructor(size: number) {
    this.#workers = Array.from({ length: size }, () => ({ freeMs: 0, building: false }))
  }

  get size(): number {
    return this.#workers.length
  }

  get busy(): number {
    return this.#workers.filter(({ building }) => building).length
  }

  endBuilds(nowMs: number): void {
    for (const worker of this.#workers) if (worker.freeMs <= nowMs) worker.building = false
  }

  start({ tookMs }: Build, nowMs: number): boolean {
    const idle = this.#workers.find(({ freeMs }) => freeMs <= nowMs)
    if (!idle) return false
    Object.assign(idle, { freeMs: nowMs + tookMs, building: true })
    return true
  }

  /** New ones are there at `readyMs`; only such as don't build are taken away, the last ones first. */
  resize(wanted: number, readyMs: number): void {
    while (this.size < wanted) this.#workers.push({ freeMs: readyMs, building: false })
    for (let i = this.size - 1; i >= 0 && this.size > wanted; i--)
      if (!this.#workers[i]?.building) this.#workers.splice(i, 1)
  }
}

/** 30 % of the pushes evenly, 40 % around 10:00, 30 % around 17:30; build times log-normal. */
function pushesOfDay(next: () => number, { builds, meanBuildMs }: { builds: number; meanBuildMs: number }): Build[] {
  const normal = () => Math.sqrt(-2 * Math.log(1 - next())) * Math.cos(2 * Math.PI * next())
  const spread = 0.5
  const at = () => {
    const kind = next()
    if (kind < 0.3) return next() * day
    return (kind < 0.7 ? 10 : 17.5) * hour + normal() * 1.25 * hour
  }
  return Array.from({ length: builds }, () => ({
    atMs: Math.min(day - 1, Math.max(0, at())),
    tookMs: meanBuildMs * Math.exp(spread * normal() - spread ** 2 / 2),
  })).sort((a, b) => a.atMs - b.atMs)
}

/** Numbers in [0, 1), the same for the same seed (mulberry32). */
export function random(seed: number): () => number {
  let state = seed
  return () => {
    state = (state + 0x6d2b79f5) | 0
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state)
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32
  }
}
