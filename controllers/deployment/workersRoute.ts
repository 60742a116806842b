import type { WorkersAnswer } from '../../api/workersApi.ts'
import { queueFigures } from '../../queue/load.ts'
import { type KnownWorker, listWorkers, stateOf } from '../../queue/workers.ts'
import { type Access, authorize } from '../../runtime/access.ts'
import type { Server } from '../../runtime/server.ts'
import type { Database } from '../../runtime/sql.ts'
import { classOf, listDeployments } from './workerClass.ts'

export interface WorkersRouteOptions extends Access {
  database: Database
  /** The hub's. */
  namespace: string
  alarmMs: number
}

/** GET /v1/workers (api/workersApi.ts): for whoever may list `workers.shoal.dev` in the hub's namespace. Any replica. */
export function registerWorkersRoute(server: Server, options: WorkersRouteOptions): void {
  const { cluster, database, namespace, alarmMs } = options
  server.get('/v1/workers', async (request): Promise<WorkersAnswer> => {
    await authorize(options, request, { verb: 'list', resource: 'workers', namespace })
    const [now, workers, figures, deployments] = await Promise.all([
      database.now(),
      listWorkers(database),
      queueFigures(database),
      listDeployments(cluster, namespace),
    ])
    const { oldestReadyMs, ...counts } = figures
    return {
      now: isoTime(now),
      workers: workers.map((worker) => described(worker, alarmMs)),
      queue: {
        ...counts,
        ...(oldestReadyMs !== undefined && { oldestReadySeconds: oldestReadyMs / 1000 }),
        wanted: Object.fromEntries(deployments.map((one) => [classOf(one), one.spec.replicas])),
      },
    }
  })
}

function described(worker: KnownWorker, alarmMs: number): WorkersAnswer['workers'][number] {
  const { name, isolation, job, firstSeenMs, lastSeenMs } = worker
  return {
    name,
    class: worker.class,
    isolation,
    state: stateOf(worker, alarmMs),
    ...(job && { job: { namespace: job.namespace, name: job.name, since: isoTime(job.sinceMs) } }),
    firstSeen: isoTime(firstSeenMs),
    lastSeen: isoTime(lastSeenMs),
  }
}

const isoTime = (ms: number) => new Date(ms).toISOString()
