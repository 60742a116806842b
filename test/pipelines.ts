import { chmod, writeFile } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import type { z } from 'zod'
import { BuildJob } from '../api/buildJob.ts'
import { Pipeline } from '../api/pipeline.ts'
import { isTrue } from '../hack/story/kube.ts'
import { addHook, commit, makeRepository, push, type Repository } from '../hack/story/repositories.ts'
import type { TestSystem } from './system.ts'

export interface TestPipeline {
  name: string
  repository: Repository
  /** Commits the script as build.sh, pushes, and returns the commit and its job's name. */
  push(script: string): Promise<{ commit: string; job: string }>
}

/** A pipeline with a repository of its own, whose pushes call the webhook. Its build is `./build.sh`. */
export async function addPipeline(
  { system, kube }: TestSystem,
  name: string,
  build: Partial<z.input<typeof Pipeline.spec>['build']> = {},
  concurrency: z.input<typeof Pipeline.spec>['concurrency'] = {},
): Promise<TestPipeline> {
  const { state } = system
  const { namespace, webhook, hub } = state
  const repository = await makeRepository(join(dirname(state.repositories.app.bare), 'more'), name)
  const url = `${hub.url}/webhooks/${namespace}/${name}`
  await addHook(repository.bare, { url, secretFile: webhook.secretFile, caFile: hub.ca })
  const pipeline = Pipeline.make(
    { name, namespace },
    {
      source: { url: repository.bare, pollInterval: '10m', webhookSecretRef: { name: 'web-webhook' } },
      build: { command: ['./build.sh'], output: 'out', timeout: '1m', ...build },
      concurrency,
    },
  )
  await kube.cluster.apply(Pipeline, pipeline, { fieldManager: 'test' })
  const place = { kind: Pipeline, namespace, name }
  await kube.until(place, (it) => isTrue(it, 'Ready'), { what: `${name} is ready`, timeoutMs: 15_000 })
  return {
    name,
    repository,
    async push(script) {
      const file = join(repository.work, 'build.sh')
      await writeFile(file, `#!/bin/sh\nset -eu\n${script}\n`)
      await chmod(file, 0o755)
      const id = await commit(repository, script.slice(0, 50))
      await push(repository)
      return { commit: id, job: `${name}-${id.slice(0, 12)}` }
    },
  }
}

/** Waits until the job is in a phase that it stays in. */
export function ended({ system, kube }: TestSystem, name: string, timeoutMs = 60_000): Promise<BuildJob> {
  const final = ['Succeeded', 'Failed', 'Cancelled']
  return kube.until(
    { kind: BuildJob, namespace: system.state.namespace, name },
    (it) => final.includes(it.status?.phase ?? ''),
    { what: `${name} has ended`, timeoutMs },
  )
}

/** The job's `Succeeded` condition. */
export const outcome = (job: BuildJob) => job.status?.conditions?.find((it) => it.type === 'Succeeded')
