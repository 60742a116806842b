import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Stalled } from '../../api/errors.ts'
import type { Pipeline } from '../../api/pipeline.ts'
import { type GitOptions, runGit } from '../../runtime/git.ts'
import { isBuilt } from './refs.ts'

export interface RepositoryOptions {
  readSecret: (namespace: string, name: string) => Promise<Record<string, string> | undefined>
}

export interface Tip {
  ref: string
  commit: string
}

/** A repository with more refs that are built is a mistake in a pattern. */
const maxRefs = 1000

/**
 * The branches and tags that are built, as the repository has them now.
 *
 * @throws Stalled `NotFound` for a missing Secret, `Invalid` for too many; what `runGit` throws
 */
export async function findTips(options: RepositoryOptions, pipeline: Pipeline, signal: AbortSignal): Promise<Tip[]> {
  const { source } = pipeline.spec
  const patterns = [
    ...source.branches.map((name) => `refs/heads/${name}`),
    // An annotated tag's commit is listed as `v1^{}`, which a name without a star would not match.
    ...source.tags.flatMap((name) => [`refs/tags/${name}`, `refs/tags/${name}^{}`]),
  ]
  const credentials = await credentialsOf(options, pipeline)
  const listed = await runGit(['ls-remote', '--', source.url, ...patterns], { credentials, signal })
  const found = [...listed.toString().matchAll(/^([0-9a-f]{40})\t(\S+)$/gm)].map(([, commit = '', ref = '']) => ({
    commit,
    ref,
  }))
  const built = peeled(found).filter(({ ref }) => isBuilt(pipeline, ref))
  if (built.length > maxRefs)
    throw new Stalled('Invalid', `${built.length} branches and tags match; the limit is ${maxRefs}`)
  return built
}

async function credentialsOf({ readSecret }: RepositoryOptions, { metadata, spec }: Pipeline) {
  const { webhookSecretRef, credentialsSecretRef } = spec.source
  const read = async (name: string) => {
    const secret = await readSecret(metadata.namespace ?? '', name)
    if (!secret) throw new Stalled('NotFound', `there is no Secret ${name}`)
    return secret
  }
  if (webhookSecretRef) await read(webhookSecretRef.name)
  return credentialsSecretRef && (await read(credentialsSecretRef.name))
}

/** An annotated tag is listed twice; its second line, `ref^{}`, names the commit. */
function peeled(tips: Tip[]): Tip[] {
  const commits = new Map<string, string>()
  for (const { ref, commit } of tips) commits.set(ref.replace(/\^\{\}$/, ''), commit)
  return [...commits].map(([ref, commit]) => ({ ref, commit }))
}

/** Runs `work` with git in an empty repository, which is removed after it. */
export async function withRepository<T>(
  options: RepositoryOptions,
  { pipeline, signal }: { pipeline: Pipeline; signal: AbortSignal },
  work: (git: GitOptions) => Promise<T>,
): Promise<T> {
  const dir = await mkdtemp(join(tmpdir(), 'shoal-poll-'))
  try {
    const git = { dir, credentials: await credentialsOf(options, pipeline), signal }
    await runGit(['init', '--quiet', '--bare'], git)
    return await work(git)
  } finally {
    await rm(dir, { recursive: true, force: true })
  }
}
