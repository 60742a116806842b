import { ShoalError } from '../api/errors.ts'
import { group } from '../api/meta.ts'
import type { Cluster } from './cluster.ts'
import { core } from './core.ts'
import type { TokenReviewer } from './identity.ts'
import { bearerToken } from './server.ts'

export interface Access {
  cluster: Cluster
  /** For people: the API server's own audience. */
  tokens: TokenReviewer
}

/**
 * Passes for a caller who may do this with a resource of our group in the API server too: people have the same rights
 * everywhere. Throws `Unauthorized`, `Forbidden`.
 */
export async function authorize(
  { cluster, tokens }: Access,
  { headers }: { headers: { authorization?: string | undefined } },
  what: { verb: 'get' | 'list' | 'create'; resource: string; namespace: string; name?: string },
): Promise<void> {
  const { username, groups } = await tokens.review(bearerToken(headers))
  const review = await cluster.create<{ status?: { allowed?: boolean } }>(core.SubjectAccessReview, {
    spec: { user: username, groups, resourceAttributes: { group, ...what } },
  })
  if (review.status?.allowed) return
  const { verb, resource, namespace, name } = what
  const object = name === undefined ? '' : ` ${name}`
  throw new ShoalError(
    'Forbidden',
    `${username} may not ${verb} ${resource}.${group}${object} in namespace ${namespace}`,
  )
}
