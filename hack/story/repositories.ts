import { execFile } from 'node:child_process'
import { chmod, cp, mkdir, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { promisify } from 'node:util'

const run = promisify(execFile)

/** git as `someone` of the demo, untouched by the reader's own configuration. */
export async function git(dir: string, ...args: string[]): Promise<string> {
  const { stdout } = await run('git', args, {
    cwd: dir,
    maxBuffer: 64 << 20,
    env: {
      ...process.env,
      GIT_CONFIG_NOSYSTEM: '1',
      GIT_CONFIG_GLOBAL: '/dev/null',
      GIT_TERMINAL_PROMPT: '0',
      GIT_AUTHOR_NAME: 'Demo',
      GIT_AUTHOR_EMAIL: 'demo@example.com',
      GIT_COMMITTER_NAME: 'Demo',
      GIT_COMMITTER_EMAIL: 'demo@example.com',
    },
  })
  return stdout.trim()
}

export interface Repository {
  /** The bare repository that is pushed to. */
  bare: string
  /** A clone of it to commit in. */
  work: string
}

/** A bare repository `<dir>/<name>.git` and a working clone beside it, on branch main, still without commits. */
export async function makeRepository(dir: string, name: string): Promise<Repository> {
  const bare = join(dir, `${name}.git`)
  const work = join(dir, name)
  await mkdir(dir, { recursive: true })
  await git(dir, 'init', '--quiet', '--bare', '--initial-branch=main', bare)
  await git(dir, 'init', '--quiet', '--initial-branch=main', work)
  await git(work, 'remote', 'add', 'origin', bare)
  return { bare, work }
}

/**
 * The application's repository and the configuration's. The application is the demo's own, or a clone of `own` (a folder
 * or URL), of which the last commit of its main line is taken.
 */
export async function makeRepositories(dir: string, own: string | undefined) {
  const [app, config] = [await makeRepository(dir, 'app'), await makeRepository(dir, 'config')]
  if (own === undefined) await cp(join(import.meta.dirname, 'app'), app.work, { recursive: true })
  else {
    await git(app.work, 'fetch', '--quiet', own, 'HEAD')
    await git(app.work, 'reset', '--quiet', '--hard', 'FETCH_HEAD')
  }
  await mkdir(join(config.work, 'deploy'))
  await writeFile(join(config.work, 'deploy', '.gitkeep'), '')
  await commit(config, 'Start')
  await push(config)
  return { app, config }
}

/** Commits everything there is and returns the commit's id. */
export async function commit(repository: Repository, message: string): Promise<string> {
  await git(repository.work, 'add', '--all')
  await git(repository.work, 'commit', '--quiet', '--message', message)
  return git(repository.work, 'rev-parse', 'HEAD')
}

/** Pushes branch main; the repository's hook runs before this returns. */
export const push = (repository: Repository) => git(repository.work, 'push', '--quiet', 'origin', 'main')

/** Makes each push call the webhook, as a git server would. `caFile` is who signed the webhook's certificate. */
export async function addHook(bare: string, to: { url: string; secretFile: string; caFile: string }) {
  const hook = join(bare, 'hooks', 'post-receive')
  const values = [process.execPath, join(import.meta.dirname, 'pushHook.ts'), to.url, to.secretFile]
  await writeFile(hook, `#!/bin/sh\nNODE_EXTRA_CA_CERTS=${quote(to.caFile)} exec ${values.map(quote).join(' ')}\n`)
  await chmod(hook, 0o755)
}

const quote = (text: string) => `'${text.replaceAll("'", "'\\''")}'`
