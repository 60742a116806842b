/**
 * controllers/artifact/: from a built blob in the home bucket to an artifact that may be deployed. Makes the Artifact
 * of each job that is Replicating, has the regions copy it, shows in its status who has it, and ends the job. It goes
 * on for as long as the artifact lives: a copy that is lost later makes it not deployable again.
 */
import { isDeepStrictEqual } from 'node:util'
import { Artifact } from '../../api/artifact.ts'
import { Transient } from '../../api/errors.ts'
import { signProvenance } from '../../artifacts/provenance.ts'
import type { Replicas } from '../../artifacts/replicas.ts'
import { type Clock, systemClock } from '../../runtime/clock.ts'
import { ApiError, type Cluster } from '../../runtime/cluster.ts'
import { Controller } from '../../runtime/controller.ts'
import type { SigningKey } from '../../runtime/dsse.ts'
import type { Logger } from '../../runtime/log.ts'
import type { Metrics } from '../../runtime/metrics.ts'
import type { Reflector } from '../../runtime/reflector.ts'
import { rounds } from '../../runtime/rounds.ts'
import type { RegionDirectory } from '../region/directory.ts'
import type { ReplicatingJob, ReplicatingJobs } from './jobs.ts'
import { artifactStatus, type RegionView } from './status.ts'

export interface ArtifactControllerOptions {
  cluster: Cluster
  artifacts: Reflector<Artifact>
  regions: RegionDirectory
  replicas: Replicas
  jobs: ReplicatingJobs
  /** Signs provenance; absent: there is none. */
  signingKey?: SigningKey
  log: Logger
  metrics: Metrics
  clock?: Clock
  /** Between two looks at queue and replicas. Default 500. */
  pollMs?: number
  /** Between two reconciles of an artifact nothing happened to. Default 60,000. */
  resyncMs?: number
}

const fieldManager = 'shoal-artifact'
const replicateAnnotation = 'shoal.dev/replicate'
/** Replicas' changes are asked for with this overlap, for transactions that commit late. */
const OVERLAP_MS = 10_000

/** Reconciles Artifacts. Several may run at once; they write the same. */
export class ArtifactController {
  readonly #options: ArtifactControllerOptions
  readonly #clock: Clock
  readonly #controller: Controller
  readonly #startedAtMs: number
  #jobs = new Map<string, ReplicatingJob>()
  #seen = new Map<string, number>()

  constructor(options: ArtifactControllerOptions) {
    this.#options = options
    this.#clock = options.clock ?? systemClock
    this.#startedAtMs = this.#clock.monotonic()
    const reconcile = (key: string) => this.#reconcile(key)
    this.#controller = new Controller({ ...options, name: 'artifact', reconcile })
    options.artifacts.onChange((key) => this.#controller.enqueue(key))
  }

  /** Looks at these artifacts at once, not at the next poll. */
  notify(artifacts: { namespace: string; name: string }[]): void {
    for (const { namespace, name } of artifacts) this.#controller.enqueue(`${namespace}/${name}`)
  }

  async run(signal: AbortSignal): Promise<void> {
    await Promise.all([this.#controller.run(signal), this.#poll(signal)])
  }

  /** Starts replicating an artifact of a pipeline with `replicate: OnDeploy`; a goal names it. May be repeated. */
  async requestReplication(namespace: string, name: string): Promise<void> {
    const artifact = this.#options.artifacts.get(`${namespace}/${name}`)
    if (artifact?.metadata.annotations?.[replicateAnnotation] !== 'OnDeploy') return
    const annotations = { [replicateAnnotation]: 'Requested' }
    await this.#options.cluster.patch(Artifact, { namespace, name }, { metadata: { annotations } })
  }

  #poll(signal: AbortSignal): Promise<void> {
    const { jobs, replicas, log, pollMs = 500 } = this.#options
    const look = async () => {
      const listed = await jobs.list()
      this.#jobs = new Map(listed.map((job) => [`${job.namespace}/${job.name}`, job]))
      for (const key of this.#jobs.keys()) this.#controller.enqueue(key)
      const changed = await replicas.changed(OVERLAP_MS)
      const seen = new Map(changed.map((change) => [`${change.namespace}/${change.name}`, change.changedAtMs]))
      for (const [key, atMs] of seen) if (this.#seen.get(key) !== atMs) this.#controller.enqueue(key)
      this.#seen = seen
    }
    const failed = (err: unknown) => log.info({ err }, 'looking for replicating jobs and changed replicas failed')
    return rounds(look, { everyMs: pollMs, clock: this.#clock, signal, failed })
  }

  async #reconcile(key: string): Promise<{ afterMs: number } | undefined> {
    const job = this.#jobs.get(key)
    const artifact = this.#options.artifacts.get(key) ?? (job ? await this.#create(job) : undefined)
    if (!artifact) return this.#forget(key)
    const { namespace = '', name } = artifact.metadata
    const onDeploy = artifact.metadata.annotations?.[replicateAnnotation] === 'OnDeploy'
    const replicas = await this.#replicasOf(artifact, onDeploy)
    const { status, deployable } = artifactStatus({
      artifact,
      replicas,
      regions: await this.#regions(),
      onDeploy,
      nowMs: this.#clock.now(),
    })
    if (!isDeepStrictEqual(status, artifact.status)) {
      const object = { metadata: { name, namespace }, status }
      await this.#options.cluster.apply(Artifact, object, { fieldManager, subresource: 'status' })
    }
    if (job) await this.#settle(job, { deployable, onDeploy, replicated: status.replicated ?? '' })
    const resyncMs = this.#options.resyncMs ?? 60_000
    return { afterMs: resyncMs * (0.9 + Math.random() / 5) }
  }

  /** The Artifact of a job, as it is once it exists. */
  async #create(job: ReplicatingJob): Promise<Artifact> {
    const { cluster, log } = this.#options
    const { key, digest, sizeBytes, partSizeBytes, checksum, infoHash, descriptorDigest } = job.facts
    const object = Artifact.make(
      {
        name: job.name,
        namespace: job.namespace,
        labels: { 'shoal.dev/pipeline': job.pipeline },
        annotations: { [replicateAnnotation]: job.replicate },
      },
      {
        pipelineRef: job.pipeline,
        commit: job.commit,
        digest,
        sizeBytes,
        key,
        partSizeBytes,
        checksum,
        descriptor: { infoHash, digest: descriptorDigest },
        regions: job.regions,
        ...this.#provenance(job),
      },
    )
    try {
      const made = Artifact.parse(await cluster.create(Artifact, { ...object }))
      log.info({ namespace: job.namespace, name: job.name, digest, sizeBytes }, 'artifact created')
      return made
    } catch (error) {
      if (!(error instanceof ApiError && error.reason === 'AlreadyExists')) throw error
      const there = await cluster.get(Artifact, job.namespace, job.name)
      if (!there) throw new Transient('Conflict', 'The artifact was deleted meanwhile.')
      return Artifact.parse(there)
    }
  }

  #provenance(job: ReplicatingJob): { provenance?: string } {
    const { signingKey } = this.#options
    if (!job.build || !signingKey) return {}
    const { namespace, name: artifact, pipeline, commit, facts, build } = job
    const source = { ...build.source, commit }
    const record = { ...build, ...facts, namespace, artifact, pipeline, source }
    return { provenance: signProvenance(record, signingKey) }
  }

  /** The replicas in the database, after adding those of regions that should have one. */
  async #replicasOf(artifact: Artifact, onDeploy: boolean) {
    const { regions, replicas: database } = this.#options
    const { namespace = '', name } = artifact.metadata
    const replicas = await database.of({ namespace, name })
    const active = regions.activeRegions().filter((region) => artifact.spec.regions.includes(region))
    const home = regions.homeRegion()
    const lacking = active.filter((region) => !replicas.some((replica) => replica.region === region))
    const others = onDeploy ? [] : lacking.filter((region) => region !== home)
    if (replicas.length > 0) {
      if (onDeploy || lacking.length === 0) return replicas
      // a region that came later has nothing yet, even if it is home now
      await database.addRegions({ namespace, name }, lacking)
    } else {
      if (home === undefined) throw new Transient('ConfigInvalid', 'Not exactly one region is home.')
      const { spec } = artifact
      await database.add({ ...spec, namespace, name, descriptorDigest: spec.descriptor.digest }, { home, others })
    }
    return database.of({ namespace, name })
  }

  async #regions(): Promise<Map<string, RegionView>> {
    const silence = await this.#options.replicas.silence()
    // what was not heard while no hub listened says nothing
    const listenedMs = this.#clock.monotonic() - this.#startedAtMs
    return new Map(
      this.#options.regions.all().map(({ metadata: { name }, spec: { cordoned } }) => {
        const silentMs = Math.min(silence.get(name) ?? 0, listenedMs)
        return [name, { cordoned, silentMs }]
      }),
    )
  }

  async #settle(
    job: ReplicatingJob,
    now: { deployable: boolean; onDeploy: boolean; replicated: string },
  ): Promise<void> {
    await this.#options.jobs.setReplicated(job.id, now.replicated)
    // with OnDeploy the home region's copy, which the hub read back, is enough
    if (!now.deployable && !now.onDeploy) return
    await this.#options.jobs.markSucceeded(job.id)
    this.#jobs.delete(`${job.namespace}/${job.name}`)
  }

  /** An Artifact that is gone, and not merely unseen yet, needs no copies any more. */
  async #forget(key: string): Promise<undefined> {
    const [namespace = '', name = ''] = key.split('/')
    if (await this.#options.cluster.get(Artifact, namespace, name)) return
    await this.#options.replicas.remove({ namespace, name })
  }
}
