/**
 * hack/story/: the whole of Shoal on one machine, and the story from a push to a running binary. `./hack/demo` plays it
 * for people, `test/` for itself: the same code, on a smaller application and fewer machines.
 */
import { mkdirSync, readFileSync, renameSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import type { Repository } from './repositories.ts'

/** How big, and whose application. */
export interface Shape {
  regions: string[]
  machinesPerRegion: number
  /** A few MB instead of an executable of 150 MB. */
  small: boolean
  /** The reader's own repository instead of the demo's application. */
  own?: { repository: string; build: string; output: string; run?: string | undefined } | undefined
}

interface StoreState {
  region: string
  endpoint: string
  bucket: string
  accessKeyId: string
  secretAccessKey: string
  /** Of the store's own process, whose death is the region's loss. */
  pid: number
  dir: string
}

export interface MachineState {
  name: string
  region: string
  /** Where the application listens. */
  port: number
  url: string
  agentPid: number
  dataDir: string
  agentUrl: string
}

/** Everything a person, the story or a test needs to find its way: `.shoal/demo/state.json`. */
export interface SystemState {
  dir: string
  shape: Shape
  namespace: string
  kubeconfig: string
  kubectl: string
  databaseUrl: string
  hub: { url: string; urls: string[]; ca: string; pid: number }
  webhook: { url: string; secretFile: string }
  workers: { name: string; url: string; pid: number }[]
  regions: { name: string; fleetUrl: string; pid: number; mirrorNamespace: string; databaseUrl: string }[]
  stores: StoreState[]
  storeCountsUrl: string
  machines: MachineState[]
  repositories: { app: Repository; config: Repository }
  startSeconds: number
}

/** The processes' logs: beside the system's folder, so that they are there to read when that is gone. */
export const logsDir = (dir: string) => `${dir}-logs`

const stateFile = (dir: string) => join(dir, 'state.json')

/** Writes state.json whole or not at all; only the user can read it, since it holds the stores' credentials. */
export function writeState(state: SystemState) {
  mkdirSync(state.dir, { recursive: true })
  writeFileSync(`${stateFile(state.dir)}.new`, `${JSON.stringify(state, undefined, 2)}\n`, { mode: 0o600 })
  renameSync(`${stateFile(state.dir)}.new`, stateFile(state.dir))
}

/** The state of the demo in `dir`, or undefined when none is up. */
export function readState(dir: string): SystemState | undefined {
  try {
    return JSON.parse(readFileSync(stateFile(dir), 'utf8')) as SystemState
  } catch {
    return undefined
  }
}
