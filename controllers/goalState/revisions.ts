import { isDeepStrictEqual } from 'node:util'
import type { Artifact } from '../../api/artifact.ts'
import { type GoalState, GoalStateRevision } from '../../api/goalState.ts'
import { engineName } from '../../rollout/effective.ts'
import { hashTemplate, type Template } from '../../rollout/envelope.ts'
import { say } from '../../rollout/words.ts'
import { ApiError, type Cluster } from '../../runtime/cluster.ts'
import type { Reflector } from '../../runtime/reflector.ts'

/** What a template is written down as in a GoalStateRevision. */
type RevisionTemplate = GoalStateRevision['spec']['template']

/** A template with the artifact's own facts, and the hash both together have. */
export interface Hashed {
  template: Template
  hash: string
}

export type Hold = NonNullable<NonNullable<GoalStateRevision['status']>['hold']>

/** The template of an activation and its artifact. */
export function templateOf(artifact: Artifact, activation: GoalState['spec']['activation']): Hashed {
  const { digest, sizeBytes, key, descriptor } = artifact.spec
  const template: Template = {
    artifact: {
      name: artifact.metadata.name,
      digest,
      sizeBytes,
      key,
      infoHash: descriptor.infoHash,
      descriptorDigest: descriptor.digest,
    },
    activation,
  }
  return { template, hash: hashTemplate(template) }
}

/** The revisions of GoalStates: every template one has had, and which of them are held. */
export class Revisions {
  readonly #cluster: Cluster
  readonly #reflector: Reflector<GoalStateRevision>

  constructor(cluster: Cluster, reflector: Reflector<GoalStateRevision>) {
    this.#cluster = cluster
    this.#reflector = reflector
  }

  /** Of one goal, oldest first. */
  of({ metadata }: GoalState): GoalStateRevision[] {
    return this.#reflector
      .list()
      .filter(
        (revision) => revision.metadata.namespace === metadata.namespace && revision.spec.goalRef === metadata.name,
      )
      .sort((a, b) => a.spec.revision - b.spec.revision)
  }

  /** A hold on any revision of a template holds the template. */
  holdOf(goal: GoalState, hash: string): Hold | undefined {
    return this.of(goal).find((revision) => revision.spec.hash === hash && revision.status?.hold)?.status?.hold
  }

  /** What people said of a revision. */
  wordsOn(goal: GoalState, number: number): NonNullable<GoalStateRevision['status']> {
    return this.of(goal).find(({ spec }) => spec.revision === number)?.status ?? {}
  }

  hashOf(goal: GoalState, number: number): string | undefined {
    return this.of(goal).find(({ spec }) => spec.revision === number)?.spec.hash
  }

  templateOf(goal: GoalState, hash: string): RevisionTemplate | undefined {
    return this.of(goal).findLast((revision) => revision.spec.hash === hash)?.spec.template
  }

  /** Writes down a template under the next free number, after those that regions know of: a backup may have forgotten some. */
  async add(goal: GoalState, hash: string, template: RevisionTemplate, reported: number): Promise<number> {
    const known = this.of(goal).at(-1)?.spec.revision ?? 0
    let revision = Math.max(known, reported, goal.status?.effective?.revision ?? 0) + 1
    for (;;) {
      const { namespace = '', name } = goal.metadata
      const metadata = {
        name: `${name}-${revision}`,
        namespace,
        labels: { 'shoal.dev/goal': name },
        ownerReferences: [{ apiVersion: goal.apiVersion, kind: goal.kind, name, uid: goal.metadata.uid }],
      }
      const made = GoalStateRevision.make(metadata, { goalRef: name, revision, hash, template })
      try {
        await this.#cluster.create(GoalStateRevision, { ...made })
        return revision
      } catch (error) {
        if (!(error instanceof ApiError && error.reason === 'AlreadyExists')) throw error
        // Made just now by a hub that died before it could say so, or a number that was used before.
        const there = GoalStateRevision.parse(await this.#cluster.get(GoalStateRevision, namespace, metadata.name))
        if (there.spec.hash === hash && isDeepStrictEqual(there.spec.template, template)) return revision
        revision++
      }
    }
  }

  /** Holds a template: it is not made effective again until a person removes `status.hold`. */
  async putHold(goal: GoalState, hash: string, why: string, at: string): Promise<void> {
    for (const revision of this.of(goal).filter((each) => each.spec.hash === hash)) {
      const { namespace, name } = revision.metadata
      const body = say(revision, { verb: 'Hold', by: engineName, at, why })
      this.#reflector.remember(
        await this.#cluster.patch(GoalStateRevision, { namespace, name, subresource: 'status' }, body),
      )
    }
  }
}
