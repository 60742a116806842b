/**
 * How many workers there should be. A pure function: the hub asks it every few seconds with what the rows say, and the
 * simulation of a day (hack/bench/queue) with what it makes up.
 */

/** Workers of one size: one Deployment. */
export interface WorkerClass {
  name: string
  min: number
  max: number
  /** Whether its hours are now. Outside them it shrinks to nothing, as builds end. */
  on: boolean
}

export interface ScalePolicy {
  /** The last one whose hours are now is filled first. */
  classes: WorkerClass[]
  /** A job should not wait longer for a worker. */
  targetWaitMs: number
  /** From the wish for a worker until it asks for a job. */
  startMs: number
  /** What was wanted within this time is kept. */
  coolDownMs: number
}

export interface QueueLoad {
  nowMs: number
  /** Jobs that only a worker is missing to. Those that wait for a slot of their pipeline are not among them. */
  ready: number
  /** Jobs queued lately, per millisecond. */
  arrivalsPerMs: number
  /** How long builds lately took, on the average. */
  buildMs: number
  /** Workers that hold a job, by class. */
  busy: Record<string, number>
}

/** What was needed at a moment, for the cool-down. */
export interface Need {
  atMs: number
  workers: number
}

export interface Wish {
  /** By class; never less than are busy. */
  workers: Record<string, number>
  /** To be given again, the next time. */
  recent: Need[]
}

/** The workers wanted of each class. More at once, fewer only when nothing needed them for a whole cool-down. */
export function wantedWorkers(policy: ScalePolicy, load: QueueLoad, recent: Need[]): Wish {
  const now: Need = { atMs: load.nowMs, workers: neededWorkers(policy, load) }
  const kept = recent.filter(({ atMs, workers }) => atMs > load.nowMs - policy.coolDownMs && workers > now.workers)
  const needs = [...kept, now]
  const workers = Object.fromEntries(policy.classes.map(({ name }) => [name, load.busy[name] ?? 0]))
  let rest = Math.max(...needs.map((need) => need.workers)) - sum(Object.values(workers))
  for (const { name, min, max } of policy.classes.filter(({ on }) => on).reverse()) {
    const busy = workers[name] ?? 0
    const wanted = Math.max(busy, min, Math.min(max, busy + Math.max(0, rest)))
    rest -= wanted - busy
    workers[name] = wanted
  }
  return { workers, recent: needs }
}

/** So many, of whatever size, that each job that waits or comes meanwhile starts in time. */
export function neededWorkers(policy: ScalePolicy, load: QueueLoad): number {
  const { targetWaitMs, startMs } = policy
  const busy = sum(Object.values(load.busy))
  const buildsInTime = targetWaitMs / Math.max(1, load.buildMs)
  const backlog = Math.max(0, load.ready - busy * buildsInTime) / Math.max(1, buildsInTime)
  // Those that come until a worker wished for now is there, and as many more as chance adds now and then.
  const coming = load.arrivalsPerMs * startMs
  const spare = (coming + Math.sqrt(coming)) / Math.max(1, startMs / Math.max(1, load.buildMs))
  return busy + Math.ceil(backlog) + Math.ceil(spare)
}

const sum = (numbers: number[]) => numbers.reduce((total, number) => total + number, 0)
