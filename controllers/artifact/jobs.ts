import type { BlobFacts } from '../../artifacts/receive.ts'

/** A build job whose artifact is in the home bucket, read back, and not everywhere yet. */
export interface ReplicatingJob {
  id: number
  namespace: string
  /** Of the BuildJob and of the Artifact. */
  name: string
  pipeline: string
  commit: string
  /** Where the artifact has to be; names, no `*`. */
  regions: string[]
  replicate: 'Always' | 'OnDeploy'
  facts: BlobFacts
  /** How it was built, for the provenance; absent: the Artifact has none. */
  build?: {
    source: { url: string; ref: string }
    command: string[]
    worker: string
    /** RFC 3339 */
    startedAt: string
    finishedAt: string
  }
}

/** The build queue, as the artifact controller sees it. */
export interface ReplicatingJobs {
  /** All of them; they are few. */
  list(): Promise<ReplicatingJob[]>
  /** Does nothing when it is Succeeded already. */
  markSucceeded(jobId: number): Promise<void>
  /** Shows how far it is, as `3/5`. */
  setReplicated(jobId: number, replicated: string): Promise<void>
}
