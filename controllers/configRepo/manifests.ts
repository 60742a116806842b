import { LineCounter, parseAllDocuments } from 'yaml'
import { z } from 'zod'
import { Stalled } from '../../api/errors.ts'
import type { SourceFile } from './git.ts'

const manifest = z.looseObject({
  apiVersion: z.string().regex(/^([a-z0-9.-]+\/)?v[a-z0-9]+$/, 'is not group/version'),
  kind: z.string().regex(/^[A-Z][A-Za-z0-9]*$/, 'is not the name of a kind'),
  metadata: z.looseObject({
    name: z.string().regex(/^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$/, 'is not a name'),
    namespace: z.string().optional(),
  }),
})
export type Manifest = z.infer<typeof manifest>

/** An object a file asks for, and where, as `deploy/web.yaml:12`. */
export interface PlacedManifest {
  manifest: Manifest
  place: string
}

const maxObjects = 1000

/**
 * The objects in the files, in order; those without a namespace get `namespace`. Throws Stalled `ConfigRepoInvalid`
 * naming file and line: bad YAML, no object, another namespace, the same object twice.
 */
export function parseManifests(files: SourceFile[], namespace: string): PlacedManifest[] {
  const placed: PlacedManifest[] = []
  const seen = new Map<string, string>()
  for (const file of files) {
    for (const { value, place } of documents(file)) {
      const parsed = manifest.safeParse(value)
      if (!parsed.success) {
        const [issue] = parsed.error.issues
        throw new Stalled('ConfigRepoInvalid', `${place}: ${issue?.path.join('.') || 'document'} ${issue?.message}`)
      }
      const object = parsed.data
      if (object.metadata.namespace !== undefined && object.metadata.namespace !== namespace) {
        const other = object.metadata.namespace
        throw new Stalled('ConfigRepoInvalid', `${place}: namespace ${other}; only ${namespace} may be written to`)
      }
      object.metadata.namespace = namespace
      const id = `${object.apiVersion} ${object.kind}/${object.metadata.name}`
      const before = seen.get(id)
      if (before !== undefined)
        throw new Stalled('ConfigRepoInvalid', `${place}: ${object.kind}/${object.metadata.name} is also in ${before}`)
      seen.set(id, place)
      placed.push({ manifest: object, place })
      if (placed.length > maxObjects)
        throw new Stalled('ConfigRepoInvalid', `${place}: more than ${maxObjects} objects`)
    }
  }
  return placed
}

function* documents({ path, text }: SourceFile) {
  const lines = new LineCounter()
  const placeOf = (offset: number) => `${path}:${lines.linePos(offset).line}`
  for (const document of parseAllDocuments(text, { lineCounter: lines, prettyErrors: false })) {
    const [error] = document.errors
    if (error) throw new Stalled('ConfigRepoInvalid', `${placeOf(error.pos[0])}: ${error.message}`)
    const place = placeOf(document.contents?.range?.[0] ?? 0)
    let value: unknown
    try {
      value = document.toJS({ maxAliasCount: 100 })
    } catch (cause) {
      throw new Stalled('ConfigRepoInvalid', `${place}: ${(cause as Error).message}`, { cause })
    }
    if (value !== null && value !== undefined) yield { value, place }
  }
}
