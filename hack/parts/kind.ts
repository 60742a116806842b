import { execFile } from 'node:child_process'
import { join, resolve } from 'node:path'
import { promisify } from 'node:util'
import { findProgram } from './programs.ts'

/** The kubeconfig of the kind cluster `shoal`, started when it isn't there; undefined without Docker or kind. */
export async function kindKubeconfig(dir: string): Promise<string | undefined> {
  const kind = findProgram('kind')
  if (!kind || !findProgram('docker')) return undefined
  const run = promisify(execFile)
  const docker = await run('docker', ['info'], { timeout: 10_000 }).catch(() => undefined)
  if (!docker) return undefined
  const file = join(dir, 'kubeconfig-kind')
  const script = resolve(import.meta.dirname, '../kind/up')
  const up = run(script, [file])
  up.child.stderr?.pipe(process.stderr, { end: false })
  await up
  return file
}
