import { z } from 'zod'
import type { Kind } from './kind.ts'

type Json = { [key: string]: unknown }

/** The CustomResourceDefinition of a kind, as `crds/<plural>.yaml` holds it. */
export function crd(kind: Kind): Json {
  return {
    apiVersion: 'apiextensions.k8s.io/v1',
    kind: 'CustomResourceDefinition',
    metadata: { name: `${kind.plural}.${kind.group}` },
    spec: {
      group: kind.group,
      scope: kind.namespaced ? 'Namespaced' : 'Cluster',
      names: {
        kind: kind.kind,
        listKind: `${kind.kind}List`,
        plural: kind.plural,
        singular: kind.kind.toLowerCase(),
        shortNames: kind.shortNames,
        categories: ['shoal'],
      },
      versions: [
        {
          name: kind.version,
          served: true,
          storage: true,
          subresources: { status: {} },
          additionalPrinterColumns: kind.columns,
          ...(kind.selectableFields.length > 0 && {
            selectableFields: kind.selectableFields.map((jsonPath) => ({ jsonPath })),
          }),
          schema: {
            openAPIV3Schema: {
              type: 'object',
              required: ['spec'],
              properties: {
                apiVersion: { type: 'string' },
                kind: { type: 'string' },
                metadata: { type: 'object' },
                spec: structural(kind.spec),
                status: structural(kind.status),
              },
            },
          },
        },
      ],
    },
  }
}

/** A zod schema as a structural OpenAPI v3 schema: what Kubernetes accepts of JSON Schema. */
function structural(schema: z.ZodType): unknown {
  const { $schema, ...json } = z.toJSONSchema(schema, { target: 'openapi-3.0', io: 'input', reused: 'inline' }) as Json
  return prune(json)
}

const safeInteger = Number.MAX_SAFE_INTEGER

/** Drops what a structural schema may not hold, or would only say what its type says already. */
function prune(schema: unknown): unknown {
  if (Array.isArray(schema)) return schema.map(prune)
  if (schema === null || typeof schema !== 'object') return schema
  const node = schema as Json
  if (node['x-kubernetes-int-or-string'] === true) return intOrString(node)
  const result: Json = {}
  for (const [key, value] of Object.entries(node)) {
    if (key === 'properties') result[key] = mapValues(value as Json, prune)
    else if (key === 'default') result[key] = value
    else if (key === 'additionalProperties' && typeof value === 'boolean') continue
    else if (key === 'propertyNames') continue
    else if ((key === 'minimum' || key === 'maximum') && Math.abs(value as number) === safeInteger) continue
    else result[key] = prune(value)
  }
  return result
}

/** A number or a text: Kubernetes wants the types in an anyOf of its own, and bounds and pattern beside them. */
function intOrString(node: Json): Json {
  const alternatives = (node.anyOf ?? node.oneOf) as Json[]
  const text = alternatives.find((alternative) => alternative.type === 'string')
  const rules = node['x-kubernetes-validations']
  const { minimum, maximum } = prune(alternatives.find((alternative) => alternative.type === 'integer')) as Json
  return {
    'x-kubernetes-int-or-string': true,
    anyOf: [{ type: 'integer' }, { type: 'string' }],
    ...(minimum !== undefined && { minimum }),
    ...(maximum !== undefined && { maximum }),
    ...(text?.pattern !== undefined && { pattern: text.pattern }),
    ...(node.description !== undefined && { description: node.description }),
    ...(node.default !== undefined && { default: node.default }),
    ...(rules !== undefined && { 'x-kubernetes-validations': rules }),
  }
}

const mapValues = (object: Json, map: (value: unknown) => unknown): Json =>
  Object.fromEntries(Object.entries(object).map(([key, value]) => [key, map(value)]))
