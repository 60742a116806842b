import { readdirSync, readFileSync } from 'node:fs'
import { setTimeout as delay } from 'node:timers/promises'

/**
 * The variable that marks every process of one demo, inherited by whatever those start: its value is the demo's folder,
 * which no other clone has. A run that was killed is cleaned up by it, with nothing to write down and lose.
 */
export const marker = 'SHOAL_DEMO'

/** A process we started, by pid and the moment it started: a pid alone may be someone else's by now. */
interface Mark {
  pid: number
  started: string
}

/** Every process of the demo in `dir`, whoever started it, but not this one. */
export function demoProcesses(dir: string): Mark[] {
  const wanted = `${marker}=${dir}`
  const pids = readdirSync('/proc').filter((entry) => /^\d+$/.test(entry) && Number(entry) !== process.pid)
  return pids.flatMap((pid) => {
    const environment = read(`/proc/${pid}/environ`)
    const started = startedAt(Number(pid))
    return started !== undefined && environment?.split('\0').includes(wanted) ? [{ pid: Number(pid), started }] : []
  })
}

/** Ends every process of the demo: SIGTERM, then SIGKILL for what is there after the grace. */
export async function endDemoProcesses(dir: string, graceMs = 3000): Promise<number> {
  const found = demoProcesses(dir)
  for (const mark of found) signal(mark, 'SIGTERM')
  const deadline = Date.now() + graceMs
  while (demoProcesses(dir).length > 0 && Date.now() < deadline) await delay(50)
  // What is ending may start another (a supervisor its application): look until nothing is found.
  for (let left = demoProcesses(dir); left.length > 0; left = demoProcesses(dir)) {
    for (const mark of left) signal(mark, 'SIGKILL')
    await delay(20)
  }
  return found.length
}

function signal(mark: Mark, name: NodeJS.Signals) {
  if (startedAt(mark.pid) !== mark.started) return
  try {
    process.kill(mark.pid, name)
  } catch {
    // It ended in between.
  }
}

/** Field 22 of /proc/pid/stat: clock ticks from boot to the process's start (proc_pid_stat(5)). Undefined for a zombie. */
function startedAt(pid: number): string | undefined {
  const fields = read(`/proc/${pid}/stat`)?.split(') ').at(-1)?.split(' ')
  return fields?.[0] === 'Z' ? undefined : fields?.[19]
}

function read(path: string): string | undefined {
  try {
    return readFileSync(path, 'utf8')
  } catch {
    return undefined
  }
}
