import type { Kube } from './kube.ts'
import type { Progress } from './progress.ts'
import type { SystemState } from './state.ts'

/** Where the story is played, and to whom it is told. */
export interface Stage {
  state: SystemState
  cluster: Kube
  progress: Progress
}
