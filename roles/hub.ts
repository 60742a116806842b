import { randomBytes } from 'node:crypto'
import { EventEmitter } from 'node:events'
import { readFileSync } from 'node:fs'
import { hostname } from 'node:os'
import { join } from 'node:path'
import { z } from 'zod'
import { Artifact } from '../api/artifact.ts'
import { BuildJob } from '../api/buildJob.ts'
import { ConfigRepo } from '../api/configRepo.ts'
import { GoalState, GoalStateRevision } from '../api/goalState.ts'
import type { Kind, ObjectOf } from '../api/kind.ts'
import { Pipeline } from '../api/pipeline.ts'
import { Region } from '../api/region.ts'
import { mirrorLabel } from '../api/regionApi.ts'
import { RegionalGoalState } from '../api/regionalGoalState.ts'
import { Replicas } from '../artifacts/replicas.ts'
import { registerConsole } from '../console/routes.ts'
import { ArtifactController } from '../controllers/artifact/controller.ts'
import { registerFetchRoute } from '../controllers/artifact/fetchRoute.ts'
import { BuildJobController } from '../controllers/buildJob/controller.ts'
import { FinishedJobs } from '../controllers/buildJob/finishedJobs.ts'
import { HistoryPruner } from '../controllers/buildJob/historyPruner.ts'
import { registerHistoryRoutes } from '../controllers/buildJob/historyRoutes.ts'
import { LogKeeper } from '../controllers/buildJob/logKeeper.ts'
import { registerLogRoute } from '../controllers/buildJob/logRoute.ts'
import { registerWorkerRoutes } from '../controllers/buildJob/routes.ts'
import { replicatingJobs, targetOf } from '../controllers/buildJob/target.ts'
import { configRepoController } from '../controllers/configRepo/controller.ts'
import { WorkersController } from '../controllers/deployment/controller.ts'
import { registerWorkersRoute } from '../controllers/deployment/workersRoute.ts'
import { GoalStateController } from '../controllers/goalState/controller.ts'
import { registerGoalsRoutes } from '../controllers/goalState/goalsRoutes.ts'
import { IndexWriter } from '../controllers/goalState/indexWriter.ts'
import { RegionalGoals } from '../controllers/goalState/regional.ts'
import { Revisions } from '../controllers/goalState/revisions.ts'
import { isSettled } from '../controllers/goalState/status.ts'
import { pipelineController } from '../controllers/pipeline/controller.ts'
import { registerWebhook } from '../controllers/pipeline/webhook.ts'
import { RegionController } from '../controllers/region/controller.ts'
import { RegionDirectory } from '../controllers/region/directory.ts'
import { KnownRegions } from '../controllers/region/knownRegions.ts'
import { registerRegionRoutes } from '../controllers/region/routes.ts'
import { Broker } from '../queue/broker.ts'
import { HealthChecker } from '../queue/healthChecker.ts'
import type { Job } from '../queue/job.ts'
import { systemClock as clock } from '../runtime/clock.ts'
import { Cluster, type Selection } from '../runtime/cluster.ts'
import { core } from '../runtime/core.ts'
import { loadSigningKey } from '../runtime/dsse.ts'
import { runElected } from '../runtime/elector.ts'
import { EventRecorder } from '../runtime/events.ts'
import { TokenReviewer } from '../runtime/identity.ts'
import type { Logger } from '../runtime/log.ts'
import { Metrics } from '../runtime/metrics.ts'
import { Reflector } from '../runtime/reflector.ts'
import { createServer, listen } from '../runtime/server.ts'
import { Database } from '../runtime/sql.ts'
import { address, file, readSettings, spanMs } from './settings.ts'

const settings = {
  /** Absent: in a pod. */
  kubeconfig: file.optional(),
  /** Where this runs: the election's Lease, and the workers' ServiceAccount. */
  namespace: z.string().default('shoal-system'),
  buildsDatabaseUrl: z.url(),
  replicationDatabaseUrl: z.url(),
  listen: address.default({ host: '0.0.0.0', port: 8443 }),
  tlsCert: file,
  tlsKey: file,
  /** Ed25519, PEM. */
  signingKey: file,
  /** How long a worker may be silent before its job goes to another. */
  lease: spanMs('30s'),
  /** Between two probes of every worker. */
  healthInterval: spanMs('5s'),
  /** A worker silent so long raises an alarm. */
  alarm: spanMs('30m'),
  /** Where alarms are posted, and what signs them. */
  alarmWebhook: z.url().optional(),
  alarmSecret: z.string().optional(),
  /** How long a job should wait for a worker, how long one takes to come, and how long it is kept unused. */
  scaleTargetWait: spanMs('30s'),
  scaleStart: spanMs('45s'),
  scaleCoolDown: spanMs('3m'),
  /** Between two looks at the workers. */
  scaleInterval: spanMs('5s'),
  /** How soon an idle worker asks again. */
  claimHold: spanMs('10s'),
  /** Regions grant for 60 s after an index. */
  indexRenew: spanMs('20s'),
  electionLease: spanMs('15s'),
  /** How long BuildJobs that have ended stay in the API, and how many at most. */
  jobTtl: spanMs('24h'),
  jobLimit: z.coerce.number().int().min(0).default(5000),
  /** How long their rows and logs stay. */
  history: spanMs('90d'),
}

/** `shoal hub`: HTTP on every replica, controllers on the one that leads. */
export async function hubRole(log: Logger, signal: AbortSignal): Promise<void> {
  const options = readSettings(settings)
  const metrics = new Metrics()
  const signingKey = loadSigningKey(readFileSync(options.signingKey, 'utf8'))
  await using stack = new AsyncDisposableStack()
  const cluster = stack.use(Cluster.load({ kubeconfig: options.kubeconfig }))
  const builds = stack.use(new Database(options.buildsDatabaseUrl))
  const replication = stack.use(new Database(options.replicationDatabaseUrl))
  await migrate(builds, 'queue')
  await migrate(replication, 'artifacts')

  const reflectors: Reflector<{ metadata: { name: string } }>[] = []
  const reflect = <K extends Kind>(kind: K, selection: Selection = {}): Reflector<ObjectOf<K>> => {
    const parse = (object: unknown) => kind.parse(object) as ObjectOf<K>
    const reflector = new Reflector<ObjectOf<K>>({ cluster, resource: kind, selection, parse, log })
    reflectors.push(reflector as unknown as Reflector<{ metadata: { name: string } }>)
    return reflector
  }
  const pipelines = reflect(Pipeline)
  const buildJobs = reflect(BuildJob)
  const artifacts = reflect(Artifact)
  const regions = reflect(Region)
  const goals = reflect(GoalState)
  const goalRevisions = reflect(GoalStateRevision)
  // Where one cluster is hub and region, the region's copies are beside what the hub wrote, and say nothing.
  const regionals = reflect(RegionalGoalState, { labelSelector: `!${mirrorLabel}` })
  const configRepos = reflect(ConfigRepo)

  const readSecret = async (namespace: string, name: string) => {
    const secret = await cluster.get<{ data?: Record<string, string> }>(core.Secret, namespace, name)
    const decode = ([key, value]: [string, string]) => [key, Buffer.from(value, 'base64').toString()]
    return secret && Object.fromEntries(Object.entries(secret.data ?? {}).map(decode))
  }
  const directory = stack.use(new RegionDirectory({ list: () => regions.list(), readSecret }))
  const replicas = new Replicas(replication)
  const events = new EventRecorder({ cluster, component: hostname(), log })
  const pipeline = (key: string) => pipelines.get(key)
  const common = { cluster, log, metrics, clock, events }

  const homeStore = () => directory.homeStore()
  const finished = new FinishedJobs({ ...common, buildJobs, ttlMs: options.jobTtl, limit: options.jobLimit })
  const horizonMs = () => finished.horizonMs()
  const buildJobController = new BuildJobController({ ...common, database: builds, buildJobs, pipeline, horizonMs })
  // A commit that a branch is still at would be built again, if its row were gone.
  const tips = new Map<string, Set<string>>()
  const isNeeded = ({ namespace, name, pipeline: of, commit }: Job) => {
    const [key, owner] = [`${namespace}/${name}`, `${namespace}/${of}`]
    const isTip = pipelines.get(owner) !== undefined && tips.get(owner)?.has(commit) !== false
    return isTip || artifacts.get(key) !== undefined || buildJobs.get(key) !== undefined
  }
  const history = { ...common, database: builds, homeStore }
  const broker = new Broker({
    ...{ database: builds, clock, log, metrics },
    targetOf: targetOf({ pipeline, regions: directory }),
  })
  const queued = () => {
    buildJobController.notify()
    broker.notify()
  }
  const artifactController = new ArtifactController({
    ...common,
    artifacts,
    regions: directory,
    replicas,
    jobs: replicatingJobs(builds),
    signingKey,
  })
  const regionController = new RegionController({ ...common, regions, directory, replicas, goals: regionals })
  const index = new IndexWriter({
    ...common,
    goals: regionals,
    isSettled: ({ goal, revision }) => isSettled(goals.get(`${goal.namespace}/${goal.name}`), revision),
    regions: () => directory.names(),
    signingKey,
    renewMs: options.indexRenew,
  })
  regions.onChange((name, region, previous) => region && !previous && index.notify(name))
  const knownRegions = new KnownRegions({ ...common, namespace: options.namespace, regions: () => directory.names() })
  regions.onChange((_name, region, previous) => {
    if (!region || !previous) knownRegions.notify()
  })
  const goalStateController = new GoalStateController({
    ...common,
    goals,
    artifacts,
    regionals,
    revisions: new Revisions(cluster, goalRevisions),
    regionalGoals: new RegionalGoals({ cluster, reflector: regionals, signingKey }),
    regions: directory,
    requestReplication: (namespace, name) => artifactController.requestReplication(namespace, name),
    checkReplica: (namespace, name, region) => replicas.checkNow({ namespace, name }, region),
  })
  goalRevisions.onChange((_key, revision) => {
    if (revision) goalStateController.notify(`${revision.metadata.namespace}/${revision.spec.goalRef}`)
  })
  const healthChecker = new HealthChecker({
    ...common,
    database: builds,
    leaseMs: options.lease,
    intervalMs: options.healthInterval,
    alarmMs: options.alarm,
    onLost: queued,
  })
  const workersController = new WorkersController({
    ...common,
    database: builds,
    namespace: options.namespace,
    policy: {
      targetWaitMs: options.scaleTargetWait,
      startMs: options.scaleStart,
      coolDownMs: options.scaleCoolDown,
    },
    alarmMs: options.alarm,
    silent: () => healthChecker.silent,
    webhook: options.alarmWebhook ? { url: options.alarmWebhook, secret: options.alarmSecret } : undefined,
    intervalMs: options.scaleInterval,
  })
  const controllers = [
    buildJobController,
    finished,
    new LogKeeper(history),
    new HistoryPruner({ ...history, historyMs: options.history, isNeeded }),
    artifactController,
    regionController,
    knownRegions,
    index,
    goalStateController,
    pipelineController({
      ...{ ...common, database: builds, pipelines, readSecret, onChange: queued },
      onPolled: (key, commits) => tips.set(key, new Set(commits)),
    }),
    configRepoController({ ...common, configRepos }),
    healthChecker,
    workersController,
  ]

  const running = [...reflectors.map((reflector) => reflector.run(signal)), broker.run(signal)]
  let synced = false
  const server = createServer({
    log,
    metrics,
    tls: { certFile: options.tlsCert, keyFile: options.tlsKey },
    ready: () => (synced ? [] : ['not every kind was listed yet']),
  })
  const tokens = new TokenReviewer(cluster, 'shoal-hub')
  const jobsHere = new EventEmitter().setMaxListeners(0)
  registerWebhook(server, { database: builds, pipeline, readSecret, metrics, log, onChange: queued })
  registerWorkerRoutes(server, {
    database: builds,
    tokens,
    namespace: options.namespace,
    pipeline,
    regions: directory,
    readSecret,
    leaseMs: options.lease,
    broker,
    claimHoldMs: options.claimHold,
    onChange: queued,
    onJob: (id) => jobsHere.emit(String(id)),
  })
  registerRegionRoutes(server, {
    regions: directory,
    replicas,
    tokens,
    onChange: (changed) => artifactController.notify(changed),
  })
  const people = { cluster, database: builds, tokens: new TokenReviewer(cluster, undefined) }
  registerLogRoute(server, { ...people, homeStore, jobs: jobsHere, clock })
  registerHistoryRoutes(server, { ...people, buildJob: (key) => buildJobs.get(key), pipeline, onChange: queued })
  registerFetchRoute(server, { ...people, artifact: (key) => artifacts.get(key), homeStore })
  registerGoalsRoutes(server, { ...people, goals: () => goals.list(), artifacts: () => artifacts.list() })
  registerWorkersRoute(server, { ...people, namespace: options.namespace, alarmMs: options.alarm })
  registerConsole(server)
  const { url } = await listen(server, options.listen)
  stack.defer(() => server.close())
  log.info({ url }, 'listening')

  await Promise.race([Promise.all(reflectors.map((reflector) => reflector.synced())), aborted(signal)])
  synced = true
  const identity = `${hostname()}-${randomBytes(4).toString('hex')}`
  const election = {
    cluster,
    namespace: options.namespace,
    name: 'shoal-hub',
    identity,
    log,
    leaseMs: options.electionLease,
  }
  await runElected(
    election,
    async (leading) => {
      await Promise.all(controllers.map((controller) => controller.run(leading)))
    },
    signal,
  )
  await Promise.all(running)
}

const migrate = (database: Database, folder: string) =>
  database.migrate(join(import.meta.dirname, '..', folder, 'migrations'))

const aborted = (signal: AbortSignal) =>
  new Promise<void>((resolve) => signal.addEventListener('abort', () => resolve(), { once: true }))
