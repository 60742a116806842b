import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { closeSync, openSync } from 'node:fs'
import { join } from 'node:path'
import { hostRuntime } from './hostRuntime.ts'
import type { StartSupervisor } from './place.ts'
import { placeFiles } from './supervisor/protocol.ts'

const sources = join(import.meta.dirname, 'supervisor')

/** Starts supervisors beside the agent, in sessions of their own. */
export const startBeside: StartSupervisor = async (placeDir) => {
  await startDetached([process.execPath, join(sources, 'main.ts'), placeDir], placeDir)
}

/** What it says before it has a log of its own goes to `start.log`: a file, for it outlives us. */
async function startDetached([program = '', ...args]: string[], placeDir: string): Promise<void> {
  const log = openSync(join(placeDir, placeFiles.control, placeFiles.startLog), 'w', 0o600)
  try {
    const child = spawn(program, args, { detached: true, stdio: ['ignore', log, log], cwd: '/' })
    await once(child, 'spawn')
    child.unref()
  } finally {
    closeSync(log)
  }
}

/**
 * Moves itself into the cgroups of the host's first process, each hierarchy's own (v1) or the one (v2), then becomes
 * the supervisor. Without this the kubelet would end the application with the agent's pod.
 */
const leavePod = `
while IFS=: read -r number controllers path; do
  case "$controllers" in
    '') for mount in /sys/fs/cgroup /sys/fs/cgroup/unified; do
          [ -e "$mount/cgroup.controllers" ] && echo $$ > "$mount$path/cgroup.procs"
        done ;;
    name=*) echo $$ > "/sys/fs/cgroup/\${controllers#name=}$path/cgroup.procs" ;;
    *) echo $$ > "/sys/fs/cgroup/$controllers$path/cgroup.procs" ;;
  esac
done 2>/dev/null < /proc/1/cgroup
cd /
exec "$@"
`

/**
 * Starts supervisors on the host, from a privileged pod with hostPID: in the host's namespaces and outside the pod's
 * cgroup, by a copy of Node and of the supervisor in the data folder, which host and pod see at the same path.
 */
export function startOnHost(dataDir: string): StartSupervisor {
  let runtime: Promise<string[]> | undefined
  return async (placeDir) => {
    runtime ??= hostRuntime(join(dataDir, 'runtime'), sources)
    const command = await runtime.catch((error: unknown) => {
      runtime = undefined
      throw error
    })
    const enter = ['nsenter', '-t', '1', '-m', '-u', '-i', '-n', '-C', '-F', '--']
    await startDetached([...enter, '/bin/sh', '-c', leavePod, 'sh', ...command, placeDir], placeDir)
  }
}
