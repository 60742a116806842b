import type { Artifact } from '../../api/artifact.ts'

interface Look {
  revision: number
  /** When the region had last looked as it was asked to look again. */
  before: string | undefined
  passed: boolean
}

/** Which regions have an artifact; before a region's first machine changes, its copy is looked at once more. */
export class ReplicaGate {
  readonly #check: (namespace: string, artifact: string, region: string) => Promise<void>
  /** By goal and region. Lost with this process: a copy is then looked at twice. */
  readonly #looks = new Map<string, Look>()

  constructor(check: (namespace: string, artifact: string, region: string) => Promise<void>) {
    this.#check = check
  }

  /** Those of `regions` that don't have it. */
  lacking(artifact: Artifact | undefined, regions: string[]): string[] {
    return regions.filter((region) => replicaIn(artifact, region)?.state !== 'Replicated')
  }

  /** Whether the region found its copy whole since it was first asked for this goal's revision. */
  async passes(goal: string, revision: number, of: { artifact: Artifact; region: string }): Promise<boolean> {
    const { artifact, region } = of
    const key = `${goal} ${region}`
    const replica = replicaIn(artifact, region)
    let look = this.#looks.get(key)
    if (look?.revision !== revision) {
      look = { revision, before: replica?.checkedAt, passed: false }
      this.#looks.set(key, look)
      await this.#check(artifact.metadata.namespace ?? '', artifact.metadata.name, region)
    }
    look.passed ||= replica?.state === 'Replicated' && replica.checkedAt !== look.before
    return look.passed
  }

  forget(goal: string): void {
    for (const key of this.#looks.keys()) if (key.startsWith(`${goal} `)) this.#looks.delete(key)
  }
}

const replicaIn = (artifact: Artifact | undefined, region: string) =>
  artifact?.status?.replicas?.find((replica) => replica.region === region)
