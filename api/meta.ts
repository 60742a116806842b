/**
 * api/: the kinds of group `shoal.dev`, as zod schemas. They are the single source: `crds/*.yaml` is generated from
 * them (`hack/generate`), every part parses and types objects by them, and nothing here does anything.
 */
import { z } from 'zod'

export const group = 'shoal.dev'
export const version = 'v1alpha1'
export const apiVersion = `${group}/${version}`

/** metav1.ObjectMeta, as far as Shoal reads or writes it. */
export const objectMeta = z.looseObject({
  name: z.string(),
  namespace: z.string().optional(),
  uid: z.string().optional(),
  resourceVersion: z.string().optional(),
  generation: z.number().optional(),
  creationTimestamp: z.string().optional(),
  deletionTimestamp: z.string().optional(),
  labels: z.record(z.string(), z.string()).optional(),
  annotations: z.record(z.string(), z.string()).optional(),
  finalizers: z.array(z.string()).optional(),
})
export type ObjectMeta = z.infer<typeof objectMeta>

/** metav1.Condition. */
const condition = z.object({
  type: z.string().max(316),
  status: z.enum(['True', 'False', 'Unknown']),
  reason: z.string().min(1).max(1024),
  message: z.string().max(32_768),
  observedGeneration: z.int().optional(),
  lastTransitionTime: z.string().meta({ format: 'date-time' }),
})
export type Condition = z.infer<typeof condition>

/** The conditions of a status: a map by type, so that two field managers can each own some. */
export const conditions = z
  .array(condition)
  .max(20)
  .meta({ 'x-kubernetes-list-type': 'map', 'x-kubernetes-list-map-keys': ['type'] })

/** A moment as RFC 3339 text. */
export const time = z.string().meta({ format: 'date-time' })

/** A span of time, as `90s`, `1h30m` or `500ms`. */
export const duration = z
  .string()
  .max(32)
  .regex(/^([0-9]+(ms|s|m|h))+$/)

const unitMs: Record<string, number> = { ms: 1, s: 1000, m: 60_000, h: 3_600_000, d: 86_400_000 }

/** Milliseconds of a `duration`; `d` is a day. */
export function durationMs(text: string): number {
  let total = 0
  for (const [, count, unit] of text.matchAll(/([0-9]+)(ms|s|m|h|d)/g))
    total += Number(count) * (unitMs[unit ?? ''] ?? 0)
  return total
}

/** A count, or a share as `33%`. */
export const intOrPercent = z
  .union([z.int().min(0), z.string().regex(/^(100|[0-9]{1,2})%$/)])
  .meta({ 'x-kubernetes-int-or-string': true })
export type IntOrPercent = z.infer<typeof intOrPercent>

/** How many of `total` an IntOrPercent means, rounded up. */
export function resolveCount(value: IntOrPercent, total: number): number {
  return typeof value === 'number' ? value : Math.ceil((Number.parseInt(value, 10) * total) / 100)
}

export const name = z.string().min(1).max(253)
export const commitId = z.string().regex(/^[0-9a-f]{40}$/)
export const sha256Digest = z.string().regex(/^sha256:[0-9a-f]{64}$/)
export const nameRef = z.object({ name })
export const envVar = z.object({ name: z.string().min(1).max(256), value: z.string().max(32_768) })

/** A CEL rule for `x-kubernetes-validations`. */
export const rule = (rule: string, message: string) => ({ rule, message })
/** CEL rules, to be passed to a schema's `.meta()`. */
export const validations = (...rules: { rule: string; message: string }[]) => ({ 'x-kubernetes-validations': rules })

/** An object of one of our kinds. */
export interface KubeObject<Spec, Status> {
  apiVersion: string
  kind: string
  metadata: ObjectMeta
  spec: Spec
  status?: Status | undefined
}
