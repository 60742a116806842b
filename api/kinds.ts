import { Artifact } from './artifact.ts'
import { BuildJob } from './buildJob.ts'
import { ConfigRepo } from './configRepo.ts'
import { GoalState, GoalStateRevision } from './goalState.ts'
import type { Kind } from './kind.ts'
import { Pipeline } from './pipeline.ts'
import { Region } from './region.ts'
import { RegionalGoalState } from './regionalGoalState.ts'

/** Every kind, in the order `crds/` lists them. */
export const kinds: Kind[] = [
  Pipeline,
  BuildJob,
  Artifact,
  GoalState,
  GoalStateRevision,
  RegionalGoalState,
  Region,
  ConfigRepo,
]
