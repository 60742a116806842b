import { execFile } from 'node:child_process'
import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { freePort, startProgram } from '../hack/parts/process.ts'

const run = promisify(execFile)

/** Served by git's own daemon to whoever reaches `host`. */
export interface ServedRepository extends AsyncDisposable {
  url: string
  /** Commits `message` as a file and pushes; returns the commit. */
  push(message: string): Promise<string>
}

/** Needs nothing but Node and a shell where it is built: the application is Node and a script. */
const build = `#!/bin/sh
set -eu
mkdir -p out
cp "$(command -v node)" out/node
sed "s/COMMIT/$(git rev-parse HEAD)/" server.js >out/server.js
`
const server = `require('node:http')
  .createServer((request, response) => response.end(request.url === '/version' ? 'COMMIT' : 'ok'))
  .listen(Number(process.env.PORT))
`

/** A repository whose `./build.sh` makes an HTTP server in `out` that answers /version with its commit. */
export async function serveRepository(dir: string, host: string): Promise<ServedRepository> {
  const [bare, work] = [join(dir, 'git/web.git'), join(dir, 'work')]
  await run('git', ['init', '--quiet', '--bare', '--initial-branch=main', bare])
  await run('git', ['init', '--quiet', '--initial-branch=main', work])
  await writeFile(join(work, 'build.sh'), build, { mode: 0o755 })
  await writeFile(join(work, 'server.js'), server)
  const port = await freePort()
  // Not `git daemon`, which runs this as a child that outlives it.
  const program = join((await run('git', ['--exec-path'])).stdout.trim(), 'git-daemon')
  const where = [`--listen=${host}`, `--port=${port}`, `--base-path=${join(dir, 'git')}`]
  const daemon = startProgram(program, ['--reuseaddr', '--export-all', ...where], { logFile: join(dir, 'git.log') })
  const git = (...args: string[]) =>
    run('git', ['-C', work, '-c', 'user.name=test', '-c', 'user.email=test@example.com', ...args])
  return {
    url: `git://${host}:${port}/web.git`,
    async push(message) {
      await writeFile(join(work, 'message.txt'), message)
      await git('add', '-A')
      await git('commit', '--quiet', '-m', message)
      await git('push', '--quiet', bare, 'HEAD:main')
      return (await git('rev-parse', 'HEAD')).stdout.trim()
    },
    [Symbol.asyncDispose]: () => daemon[Symbol.asyncDispose](),
  }
}
