import type { Artifact } from '../../api/artifact.ts'
import type { GoalState } from '../../api/goalState.ts'
import { fallbackOf } from '../../rollout/effective.ts'
import type { Reflector } from '../../runtime/reflector.ts'
import { type Hashed, type Revisions, templateOf } from './revisions.ts'
import type { GoalStatus } from './status.ts'

/** The templates of goals, as far as their artifacts are there. */
export class Templates {
  readonly #artifacts: Reflector<Artifact>
  readonly #revisions: Revisions

  constructor({ artifacts, revisions }: { artifacts: Reflector<Artifact>; revisions: Revisions }) {
    this.#artifacts = artifacts
    this.#revisions = revisions
  }

  artifact(goal: GoalState, name: string): Artifact | undefined {
    return this.#artifacts.get(`${goal.metadata.namespace}/${name}`)
  }

  /** What the spec says. */
  wanted(goal: GoalState): Hashed | undefined {
    const artifact = this.artifact(goal, goal.spec.artifactRef.name)
    return artifact && templateOf(artifact, goal.spec.activation)
  }

  /** One that the goal has had, by its hash. */
  of(goal: GoalState, hash: string): Hashed | undefined {
    const kept = this.#revisions.templateOf(goal, hash) ?? specOf(goal)
    const artifact = this.artifact(goal, kept.artifactRef.name)
    const found = artifact && templateOf(artifact, kept.activation)
    return found?.hash === hash ? found : undefined
  }

  /** What machines keep on disk beside the effective one, to go back to. */
  previous(goal: GoalState, status: GoalStatus): { template: Hashed['template']; templateHash: string } | undefined {
    const good = fallbackOf(status, status.effective?.template)
    const found = good && this.of(goal, good.template)
    return found && { template: found.template, templateHash: found.hash }
  }
}

export const specOf = ({ spec }: GoalState) => ({ artifactRef: spec.artifactRef, activation: spec.activation })
