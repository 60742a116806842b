/**
 * supervisor/: the small program that owns one place of a machine. It starts the application and keeps it running,
 * and performs an activation as a whole: stop, switch `current`, start, watch, and back again when that fails. It
 * outlives the agent, needs no network, and after a crash at any moment ends with the old or the new release running.
 * It is copied alone to hosts, so it imports Node's own modules and this folder, nothing else.
 */

export type Probe = { port: number; path: string } | { tcpPort: number } | { command: string[] }

/** Everything it takes to run a release, with the machine's variables filled in. */
export interface Run {
  template: string
  /** The release's folder, absolute. */
  release: string
  command: string[]
  env: Record<string, string>
  envFile?: string
  user?: string
  stop: { signal: NodeJS.Signals; timeoutMs: number }
  /** HTTP, TCP or a command in the release's folder. */
  health?: Probe
  minHealthyMs: number
  deadlineMs: number
}

/** Switch to `run`, once. */
export interface ActivationRequest {
  /** The grant's. The same id is never performed twice. */
  id: string
  /** The goal, as namespace/name. */
  goal: string
  /** Of the GoalState: one that was deleted and made anew counts its revisions anew. */
  uid?: string
  revision: number
  run: Run
}

/** How an activation ended. Interrupted: power or supervisor was lost in the middle, and the old release runs again. */
export interface Outcome {
  id: string
  goal: string
  uid?: string
  revision: number
  template: string
  result: 'Healthy' | 'RolledBack' | 'Failed' | 'Interrupted'
  message?: string
}

export interface PlaceStatus {
  supervisorPid: number
  /** What should run. */
  accepted?: { template: string; release: string }
  applicationPid?: number
  /** The template that runs and is healthy. */
  running?: string
  /** How long the accepted release has not been running and healthy. */
  unhealthyForMs?: number
  activating?: { id: string; goal: string; revision: number; template: string }
  outcome?: Outcome
}

/** One line of JSON each way, one exchange a connection. */
export type Command =
  | { command: 'status' }
  | { command: 'activate'; request: ActivationRequest }
  | { command: 'shutdown' }

export type Answer = { ok: true; status: PlaceStatus } | { ok: false; message: string }

/** Names in a place's folder. */
export const placeFiles = {
  current: 'current',
  log: 'application.log',
  control: 'control',
  socket: 'socket',
  state: 'place.json',
  lock: 'lock',
  startLog: 'start.log',
} as const
