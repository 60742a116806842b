import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { ConfigRepo } from '../../api/configRepo.ts'
import { ShoalError, Stalled } from '../../api/errors.ts'
import { durationMs } from '../../api/meta.ts'
import type { Clock } from '../../runtime/clock.ts'
import type { Cluster } from '../../runtime/cluster.ts'
import { type Standing, standingConditions } from '../../runtime/conditions.ts'
import { Controller, type ReconcileResult } from '../../runtime/controller.ts'
import { core } from '../../runtime/core.ts'
import { EventRecorder } from '../../runtime/events.ts'
import type { Logger } from '../../runtime/log.ts'
import type { Metrics } from '../../runtime/metrics.ts'
import type { Reflector } from '../../runtime/reflector.ts'
import { applyAll } from './apply.ts'
import { branchTip, fetchCommit, type Remote, yamlFiles } from './git.ts'
import { parseManifests } from './manifests.ts'

export interface ConfigRepoOptions {
  cluster: Cluster
  configRepos: Reflector<ConfigRepo>
  log: Logger
  metrics: Metrics
  clock: Clock
  random?: () => number
}

const fieldManager = 'shoal-configrepo'
/** What someone changed by hand is put back so often, though no commit came. */
const reapplyMs = 300_000
const gitTimeoutMs = 60_000

/**
 * Reconciles ConfigRepos: asks each repository for its tip every `interval`, and applies a commit that is new. A fault
 * is told in the conditions and looked at again every interval too, since its cause may be gone (a right granted).
 */
export function configRepoController(options: ConfigRepoOptions): Controller {
  const { cluster, configRepos, log, clock, metrics, random = Math.random } = options
  const events = new EventRecorder({ cluster, component: 'hub', log, clock })
  const controller = new Controller({ name: 'configrepo', reconcile, log, metrics, clock })
  configRepos.onChange((key, object, previous) => {
    if (object && object.metadata.generation !== previous?.metadata.generation) controller.enqueue(key)
  })
  return controller

  async function reconcile(key: string, signal: AbortSignal): Promise<ReconcileResult> {
    const cached = configRepos.get(key)
    if (!cached || cached.metadata.deletionTimestamp) return
    // A copy: what this reconcile reports is seen by its own next step before the watch brings it back.
    const repo = { ...cached }
    const bounded = AbortSignal.any([signal, AbortSignal.timeout(gitTimeoutMs)])
    try {
      await bringToTip(repo, bounded)
    } catch (error) {
      if (signal.aborted) throw error
      await report(repo, standingOf(error))
      if (!(error instanceof ShoalError)) throw error
      log.info({ key, code: error.code, reason: error.message }, 'configuration repository not applied')
    }
    return { afterMs: durationMs(repo.spec.interval) * (0.9 + random() * 0.2) }
  }

  async function bringToTip(repo: ConfigRepo, signal: AbortSignal) {
    const { spec, status, metadata } = repo
    const namespace = metadata.namespace ?? ''
    const remote: Remote = { url: spec.url, branch: spec.branch, ...(await credentials(repo)) }
    const tip = await branchTip(remote, signal)
    const ready = status?.conditions?.some((it) => it.type === 'Ready' && it.status === 'True')
    const fresh = clock.now() - Date.parse(status?.appliedAt ?? '') < reapplyMs
    const same = status?.appliedCommit === tip && status.observedGeneration === metadata.generation
    if (same && ready && fresh) return
    if (!same) await report(repo, { is: 'Reconciling', reason: 'Applying', message: `applying ${tip}` })
    const dir = await mkdtemp(join(tmpdir(), 'shoal-configrepo-'))
    try {
      await fetchCommit(remote, tip, { dir, signal })
      const files = await yamlFiles(tip, { dir, path: spec.path, signal })
      const placed = parseManifests(files, namespace)
      await applyAll(cluster, placed, {
        namespace,
        serviceAccountName: spec.serviceAccountName,
        fieldManager: `${fieldManager}-${metadata.name}`.slice(0, 128),
      })
      const objects = placed.map(({ manifest }) => `${manifest.kind}/${manifest.metadata.name}`)
      const notDone = spec.prune ? '; prune is not done by this version, delete by hand' : ''
      const message = `applied ${objects.length} objects of ${tip}${notDone}`
      await report(
        repo,
        { is: 'Ready', reason: 'Applied', message },
        { appliedCommit: tip, appliedAt: new Date(clock.now()).toISOString(), objects },
      )
      if (!same) events.record(repo, 'Normal', 'Applied', message)
    } finally {
      await rm(dir, { recursive: true, force: true })
    }
  }

  async function credentials(repo: ConfigRepo): Promise<{ username?: string; password?: string }> {
    const ref = repo.spec.credentialsSecretRef
    if (ref === undefined) return {}
    const secret = await cluster.get<{ data?: Record<string, string> }>(core.Secret, repo.metadata.namespace, ref.name)
    const { username, password } = secret?.data ?? {}
    if (password === undefined)
      throw new Stalled('ConfigInvalid', `Secret ${ref.name} has to hold username and password`)
    const decode = (text: string) => Buffer.from(text, 'base64').toString()
    return { username: decode(username ?? ''), password: decode(password) }
  }

  /** The one place that writes the status; what `applied` leaves out stays as it is. */
  async function report(
    repo: ConfigRepo,
    standing: Standing,
    applied: Partial<NonNullable<ConfigRepo['status']>> = {},
  ) {
    const { name, namespace, generation } = repo.metadata
    const { appliedCommit, appliedAt, objects } = repo.status ?? {}
    const before = repo.status?.conditions ?? []
    const status: ConfigRepo['status'] = {
      ...(appliedCommit !== undefined && { appliedCommit }),
      ...(appliedAt !== undefined && { appliedAt }),
      ...(objects !== undefined && { objects }),
      ...applied,
      ...(generation !== undefined && { observedGeneration: generation }),
      conditions: standingConditions(before, standing, generation, clock.now()),
    }
    if (standing.is === 'Stalled') events.record(repo, 'Warning', standing.reason, standing.message)
    if (JSON.stringify(before) === JSON.stringify(status.conditions) && Object.keys(applied).length === 0) return
    const metadata = { name, ...(namespace !== undefined && { namespace }) }
    const object = { metadata, status }
    await cluster.apply(ConfigRepo, object, { fieldManager, subresource: 'status' })
    repo.status = status
  }
}

function standingOf(error: unknown): Standing {
  const reason = error instanceof ShoalError ? error.code : 'Internal'
  const message = (error instanceof Error ? error.message : String(error)).slice(0, 4000)
  return { is: error instanceof Stalled ? 'Stalled' : 'Reconciling', reason, message }
}
