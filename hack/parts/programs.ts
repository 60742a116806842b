import { execFile, execFileSync } from 'node:child_process'
import { accessSync, constants } from 'node:fs'
import { delimiter, join, resolve } from 'node:path'
import { promisify } from 'node:util'

const root = resolve(import.meta.dirname, '../..')
const built = new Map<string, Promise<string>>()

/** The folder with kube-apiserver, etcd and kubectl: envtest's assets when KUBEBUILDER_ASSETS names them, else built. */
export async function kubernetesPrograms(): Promise<string> {
  const assets = process.env.KUBEBUILDER_ASSETS
  if (!assets) return build('kubernetes')
  for (const name of ['kube-apiserver', 'etcd']) {
    if (!isExecutable(join(assets, name))) throw new Error(`missing: ${name} in KUBEBUILDER_ASSETS (${assets})`)
  }
  return resolve(assets)
}

/** The path of the S3 server. */
export async function versitygw(): Promise<string> {
  return join(await build('versitygw'), 'versitygw')
}

/** hack/tools/build says on standard error what it does when that takes long, and what it lacks. */
function build(name: string): Promise<string> {
  let folder = built.get(name)
  if (!folder) {
    const run = promisify(execFile)(join(root, 'hack/tools/build'), [name], { encoding: 'utf8' })
    run.child.stderr?.pipe(process.stderr, { end: false })
    folder = run.then(
      ({ stdout }) => stdout.trim(),
      (error: { stderr?: string }) => {
        throw new Error(error.stderr?.trim().split('\n').at(-1) || `hack/tools/build ${name} failed`, { cause: error })
      },
    )
    built.set(name, folder)
  }
  return folder
}

/** The path of a program in PATH or in the folders where servers are installed. */
export function findProgram(...names: string[]): string | undefined {
  const folders = [...(process.env.PATH ?? '').split(delimiter), '/usr/sbin', '/usr/libexec', '/usr/local/sbin']
  for (const name of names) {
    const found = folders.map((folder) => join(folder, name)).find(isExecutable)
    if (found) return found
  }
  return undefined
}

function isExecutable(path: string): boolean {
  try {
    accessSync(path, constants.X_OK)
    return true
  } catch {
    return false
  }
}

/** Installs a Debian package when we may; else says whether that is why something is missing. */
export function installDebianPackage(name: string): boolean {
  if (process.getuid?.() !== 0 || !findProgram('apt-get')) return false
  process.stderr.write(`installing ${name} (some seconds)\n`)
  const env = { ...process.env, DEBIAN_FRONTEND: 'noninteractive' }
  const script = `apt-get update -qq && apt-get install -y -qq --no-install-recommends ${name}`
  // One at a time: apt-get itself refuses to run twice.
  const lock = findProgram('flock') ? ['flock', '/tmp/shoal-apt.lock'] : []
  const [command = 'sh', ...args] = [...lock, 'sh', '-c', script]
  try {
    execFileSync(command, args, { env, stdio: ['ignore', 'ignore', 'pipe'] })
    return true
  } catch {
    return false
  }
}
