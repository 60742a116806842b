import { readdir, readFile } from 'node:fs/promises'
import { join, resolve } from 'node:path'
import { parse } from 'yaml'
import { z } from 'zod'
import { ApiError } from './adminClient.ts'
import type { ApiServer } from './apiServer.ts'
import { until } from './process.ts'

const folder = resolve(import.meta.dirname, '../../crds')

const crdSchema = z.looseObject({
  kind: z.literal('CustomResourceDefinition'),
  metadata: z.looseObject({ name: z.string() }),
  spec: z.looseObject({
    group: z.string(),
    names: z.looseObject({ plural: z.string() }),
    versions: z.array(z.looseObject({ name: z.string() })),
  }),
  status: z
    .looseObject({ conditions: z.array(z.looseObject({ type: z.string(), status: z.string() })).optional() })
    .optional(),
})

/** Applies every CRD of crds/ by server-side apply, and waits until objects of each kind can be listed. */
export async function applyCrds(server: ApiServer): Promise<void> {
  const files = (await readdir(folder)).filter((name) => name.endsWith('.yaml') && name !== 'kustomization.yaml')
  await Promise.all(files.map(async (name) => applyCrd(server, await readFile(join(folder, name), 'utf8'))))
}

async function applyCrd(server: ApiServer, text: string): Promise<void> {
  // Raw JSON: typed clients drop the x-kubernetes- fields.
  const crd = crdSchema.parse(parse(text))
  const { name } = crd.metadata
  const path = `/apis/apiextensions.k8s.io/v1/customresourcedefinitions/${name}`
  const type = 'application/apply-patch+yaml'
  await retried(() => server.request('PATCH', `${path}?fieldManager=shoal&force=true`, crd, type))
  await until(`CRD ${name} established`, async () => {
    const { status } = crdSchema.parse(await server.request('GET', path))
    return status?.conditions?.some((condition) => condition.type === 'Established' && condition.status === 'True')
  })
  for (const version of crd.spec.versions) {
    // Right after, it may still answer 404, or 429 "storage is (re)initializing".
    const list = `/apis/${crd.spec.group}/${version.name}/${crd.spec.names.plural}?limit=1`
    await until(`list of ${name}`, () => server.request('GET', list), { timeoutMs: 40_000, intervalMs: 100 })
  }
}

/** A server that just started may refuse for a moment. */
async function retried(fn: () => Promise<unknown>): Promise<void> {
  await until('apply', async () => {
    try {
      await fn()
      return true
    } catch (error) {
      if (error instanceof ApiError && error.code < 500 && error.code !== 429 && error.code !== 409) return error
      throw error
    }
  }).then((answer) => {
    if (answer instanceof Error) throw answer
  })
}
