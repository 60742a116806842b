import { z } from 'zod'
import { defineKind, type ObjectOf } from './kind.ts'
import { conditions, rule, validations } from './meta.ts'

const spec = z
  .object({
    home: z.boolean().default(false).describe('Workers upload to this region’s bucket. Exactly one region is home.'),
    cordoned: z.boolean().default(false).describe('Leave this region out of replication and rollouts.'),
    store: z.object({
      endpoint: z.string().max(2048),
      bucket: z.string().min(3).max(63),
      credentialsSecretRef: z
        .object({ namespace: z.string(), name: z.string() })
        .optional()
        .describe('A Secret with `accessKeyId` and `secretAccessKey`; for the home region only.'),
    }),
    replication: z
      .enum(['Managed', 'Bucket'])
      .default('Managed')
      .describe('Managed: Shoal copies. Bucket: the store replicates by itself, Shoal only checks.'),
    clusters: z
      .array(
        z.object({
          name: z.string().min(1).max(253),
          issuer: z.string().max(2048),
          jwks: z.string().max(65_536).describe('The cluster’s ServiceAccount signing keys, as JSON.'),
        }),
      )
      .max(100)
      .default([]),
  })
  .meta(
    validations(
      rule('!self.home || has(self.store.credentialsSecretRef)', 'the home region needs store.credentialsSecretRef'),
    ),
  )

const status = z.object({
  observedGeneration: z.int().optional(),
  machines: z.int().optional(),
  conditions: conditions.optional(),
})

/** A place with a bucket, an API server and a fleet server. */
export const Region = defineKind({
  kind: 'Region',
  plural: 'regions',
  namespaced: false,
  shortNames: ['rgn'],
  columns: [
    { name: 'Home', type: 'string', jsonPath: '.spec.home' },
    { name: 'Cordoned', type: 'string', jsonPath: '.spec.cordoned' },
    { name: 'Machines', type: 'integer', jsonPath: '.status.machines' },
    { name: 'Ready', type: 'string', jsonPath: ".status.conditions[?(@.type=='Ready')].status" },
    { name: 'Message', type: 'string', jsonPath: ".status.conditions[?(@.type=='Ready')].message", priority: 1 },
  ],
  spec,
  status,
})
export type Region = ObjectOf<typeof Region>
