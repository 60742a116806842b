import { z } from 'zod'
import { defineKind, type ObjectOf } from './kind.ts'
import { commitId, conditions, duration, envVar, name, nameRef, rule, time, validations } from './meta.ts'

const source = z.object({
  url: z.string().min(1).max(2048).describe('The git repository, as git clone takes it.'),
  branches: z.array(z.string().max(256)).max(64).default(['main']),
  tags: z.array(z.string().max(256)).max(64).default([]),
  paths: z
    .array(z.string().max(1024))
    .max(64)
    .default([])
    .describe(
      'Builds a push only when files under one of these changed since the last job of its ref: paths or globs.',
    ),
  pollInterval: duration.default('60s'),
  webhookSecretRef: nameRef.optional().describe('A Secret whose key `secret` signs webhooks.'),
  credentialsSecretRef: nameRef.optional().describe('A Secret with `username` and `password`.'),
})

/** How a pipeline builds: the part of it a build job takes along. */
export const build = z.object({
  command: z.array(z.string().min(1).max(4096)).min(1).max(64),
  output: z.string().min(1).max(1024).describe('The file or folder the build leaves, relative to the checkout.'),
  timeout: duration.default('30m'),
  env: z.array(envVar).max(100).default([]),
})

const spec = z.object({
  source,
  build,
  concurrency: z
    .object({
      max: z.int().min(1).max(1000).default(4),
      onPush: z
        .enum(['Queue', 'CancelOlder'])
        .default('Queue')
        .describe('CancelOlder: a push ends the unfinished jobs of earlier pushes to the same ref.'),
    })
    .prefault({}),
  regions: z
    .array(name)
    .min(1)
    .max(50)
    .default(['*'])
    .meta(validations(rule("self.size() == 1 || !('*' in self)", "regions is either ['*'] or a list of names"))),
  replicate: z.enum(['Always', 'OnDeploy']).default('Always'),
  retention: z
    .object({ keepLast: z.int().min(1).default(20), keepFor: duration.default('24h') })
    .prefault({})
    .describe('Not acted on yet: artifacts are kept.'),
})

const status = z.object({
  observedGeneration: z.int().optional(),
  lastCommit: commitId.optional(),
  lastBuildJob: z.string().optional(),
  polledAt: time.optional().describe('When the repository was first polled.'),
  ignoredTags: z
    .array(z.string().max(512))
    .max(1000)
    .optional()
    .describe('Tags that were there at the first poll, which does not build them.'),
  conditions: conditions.optional(),
})

/** A repository, how to build it, and what triggers it. */
export const Pipeline = defineKind({
  kind: 'Pipeline',
  plural: 'pipelines',
  shortNames: ['pl'],
  columns: [
    { name: 'Repository', type: 'string', jsonPath: '.spec.source.url' },
    { name: 'Last Job', type: 'string', jsonPath: '.status.lastBuildJob' },
    { name: 'Ready', type: 'string', jsonPath: ".status.conditions[?(@.type=='Ready')].status" },
    { name: 'Message', type: 'string', jsonPath: ".status.conditions[?(@.type=='Ready')].message", priority: 1 },
  ],
  spec,
  status,
})
export type Pipeline = ObjectOf<typeof Pipeline>
