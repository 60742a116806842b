import { z } from 'zod'
import { defineKind, type ObjectOf } from './kind.ts'
import { conditions, duration, name, nameRef, time } from './meta.ts'

const spec = z.object({
  url: z.string().min(1).max(2048),
  branch: z.string().min(1).max(256).default('main'),
  path: z.string().max(1024).default('.'),
  interval: duration.default('60s'),
  prune: z.boolean().default(false).describe('Not acted on yet: what leaves the repository stays.'),
  serviceAccountName: name.describe('What is merged is applied with this ServiceAccount’s rights, in this namespace.'),
  webhookSecretRef: nameRef.optional(),
  credentialsSecretRef: nameRef.optional(),
})

const status = z.object({
  observedGeneration: z.int().optional(),
  appliedCommit: z.string().optional(),
  appliedAt: time.optional(),
  objects: z.array(z.string()).max(1000).optional().describe('What the last commit applied, as Kind/name.'),
  conditions: conditions.optional(),
})

/** The pull-request way: what is merged is applied. */
export const ConfigRepo = defineKind({
  kind: 'ConfigRepo',
  plural: 'configrepos',
  shortNames: ['cr'],
  columns: [
    { name: 'Repository', type: 'string', jsonPath: '.spec.url' },
    { name: 'Applied', type: 'string', jsonPath: '.status.appliedCommit' },
    { name: 'Ready', type: 'string', jsonPath: ".status.conditions[?(@.type=='Ready')].status" },
    { name: 'Message', type: 'string', jsonPath: ".status.conditions[?(@.type=='Ready')].message", priority: 1 },
  ],
  spec,
  status,
})
export type ConfigRepo = ObjectOf<typeof ConfigRepo>
