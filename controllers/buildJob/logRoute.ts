import { BuildJob } from '../../api/buildJob.ts'
import { ShoalError } from '../../api/errors.ts'
import { findJob } from '../../queue/control.ts'
import { readLog } from '../../queue/log.ts'
import type { Cluster } from '../../runtime/cluster.ts'
import { core } from '../../runtime/core.ts'
import type { TokenReviewer } from '../../runtime/identity.ts'
import { bearerToken, type Server } from '../../runtime/server.ts'
import type { Database } from '../../runtime/sql.ts'

export interface LogRouteOptions {
  cluster: Cluster
  database: Database
  /** For people: the API server's own audience. */
  tokens: TokenReviewer
}

/** GET /v1/jobs/<namespace>/<name>/log: a build's output, for whoever may get the BuildJob. */
export function registerLogRoute(server: Server, { cluster, database, tokens }: LogRouteOptions): void {
  server.get<{ Params: { namespace: string; name: string } }>(
    '/v1/jobs/:namespace/:name/log',
    async (request, reply) => {
      const { namespace, name } = request.params
      const { username, groups } = await tokens.review(bearerToken(request.headers))
      const resourceAttributes = { group: BuildJob.group, resource: BuildJob.plural, verb: 'get', namespace, name }
      const review = await cluster.create<{ status?: { allowed?: boolean } }>(core.SubjectAccessReview, {
        spec: { user: username, groups, resourceAttributes },
      })
      if (!review.status?.allowed) throw new ShoalError('Forbidden', `${username} may not get BuildJob ${name}`)
      const job = await findJob(database, namespace, name)
      if (!job) throw new ShoalError('NotFound', `there is no job ${name}`)
      return reply.type('text/plain; charset=utf-8').send(await readLog(database, job.id))
    },
  )
}
