import type { z } from 'zod'
import { apiVersion, group, type KubeObject, type ObjectMeta, objectMeta, version } from './meta.ts'

/** A printer column of `kubectl get`. `priority: 1` shows only with `-o wide`. */
interface Column {
  name: string
  type: 'string' | 'integer' | 'date'
  jsonPath: string
  priority?: number
}

/** One of our kinds: what its CRD is generated from, and what reads and writes its objects. */
export interface Kind<Spec extends z.ZodType = z.ZodType, Status extends z.ZodType = z.ZodType> {
  group: string
  version: string
  kind: string
  plural: string
  namespaced: boolean
  shortNames: string[]
  columns: Column[]
  selectableFields: string[]
  spec: Spec
  status: Status
  parse(object: unknown): KubeObject<z.output<Spec>, z.output<Status>>
  /** A new object, with the group's apiVersion. */
  make(metadata: ObjectMeta, spec: z.input<Spec>): KubeObject<z.input<Spec>, z.output<Status>>
}

interface Declaration<Spec extends z.ZodType, Status extends z.ZodType> {
  kind: string
  plural: string
  namespaced?: boolean
  shortNames: string[]
  columns: Column[]
  selectableFields?: string[]
  spec: Spec
  status: Status
}

const age: Column = { name: 'Age', type: 'date', jsonPath: '.metadata.creationTimestamp' }

/** Declares a kind. `parse` throws a ZodError for an object that does not fit. */
export function defineKind<Spec extends z.ZodType, Status extends z.ZodType>(
  declaration: Declaration<Spec, Status>,
): Kind<Spec, Status> {
  const { kind, spec, status } = declaration
  return {
    group,
    version,
    namespaced: true,
    selectableFields: [],
    ...declaration,
    columns: [...declaration.columns, age],
    parse(object) {
      const raw = object as { metadata?: unknown; spec?: unknown; status?: unknown }
      return {
        apiVersion,
        kind,
        metadata: objectMeta.parse(raw.metadata),
        spec: spec.parse(raw.spec ?? {}),
        status: raw.status === undefined ? undefined : status.parse(raw.status),
      }
    },
    make: (metadata, spec) => ({ apiVersion, kind, metadata, spec }),
  }
}

/** The object type of a kind, as in `ObjectOf<typeof Pipeline>`. */
export type ObjectOf<K> =
  K extends Kind<infer Spec, infer Status> ? KubeObject<z.output<Spec>, z.output<Status>> : never
