import { z } from 'zod'
import { Artifact } from '../../api/artifact.ts'
import type { FetchAnswer } from '../../api/artifactApi.ts'
import { type Descriptor, parseDescriptor } from '../../api/descriptor.ts'
import { ShoalError } from '../../api/errors.ts'
import { MAX_DESCRIPTOR_BYTES } from '../../artifacts/check.ts'
import { descriptorKey } from '../../artifacts/key.ts'
import type { Store } from '../../artifacts/store.ts'
import { type Access, authorize } from '../../runtime/access.ts'
import type { Server } from '../../runtime/server.ts'
import { LocalChunks } from '../../swarm/localChunks.ts'

export interface FetchRouteOptions extends Access {
  /** By `namespace/name`. */
  artifact: (key: string) => Artifact | undefined
  homeStore: () => Promise<Store>
}

/** What machines keep: the release that runs, and the one to go back to. */
const mostOnDisk = 2

const query = z.object({
  onDisk: z
    .string()
    .default('')
    .transform((names) => [...new Set(names.split(',').filter(Boolean))])
    .refine((names) => names.length <= mostOnDisk, `at most ${mostOnDisk}, which is what a machine keeps`),
})

/** api/artifactApi.ts: for whoever may get all of these artifacts. Any replica answers. */
export function registerFetchRoute(server: Server, options: FetchRouteOptions): void {
  server.get<{ Params: { namespace: string; name: string } }>(
    '/v1/artifacts/:namespace/:name/fetch',
    async (request): Promise<FetchAnswer> => {
      const { namespace, name } = request.params
      const { onDisk } = query.parse(request.query)
      for (const each of [name, ...onDisk])
        await authorize(options, request, { verb: 'get', resource: Artifact.plural, namespace, name: each })
      const wanted = options.artifact(`${namespace}/${name}`)
      if (!wanted) throw new ShoalError('NotFound', `there is no Artifact ${name} in namespace ${namespace}`)
      const store = await options.homeStore()
      const known = onDisk.flatMap((other) => options.artifact(`${namespace}/${other}`) ?? [])
      const torrent = await descriptorOf(store, wanted)
      const releases = await Promise.all(
        known.map(async (one) => ({ torrent: await descriptorOf(store, one), dir: '' })),
      )
      await using local = new LocalChunks(torrent, releases, () => undefined)
      return { sizeBytes: torrent.sizeBytes, fetchBytes: torrent.sizeBytes - local.wholeBlocksBytes() }
    },
  )
}

const descriptorOf = async (store: Store, { spec }: Artifact): Promise<Descriptor> =>
  parseDescriptor(await store.readAll(descriptorKey(spec.key), MAX_DESCRIPTOR_BYTES))
