import { readdirSync, readFileSync } from 'node:fs'

/** A process by pid and the moment it started: a pid alone may be someone else's by now. */
export interface ProcessId {
  pid: number
  /** Clock ticks from boot to its start, and the boot: field 22 of /proc/<pid>/stat (proc_pid_stat(5)). */
  started: string
}

/** Undefined when there is no such process, or only a zombie of it. */
export function identify(pid: number): ProcessId | undefined {
  const fields = read(`/proc/${pid}/stat`)?.split(') ').at(-1)?.split(' ')
  if (!fields || fields[0] === 'Z' || fields[0] === 'X') return undefined
  return { pid, started: `${bootId()}:${fields[19]}` }
}

export const isRunning = (process: ProcessId): boolean => identify(process.pid)?.started === process.started

/** Every process whose environment has the mark, children of such ones too. */
export function markedProcesses(mark: string): ProcessId[] {
  const found: ProcessId[] = []
  for (const entry of readdirSync('/proc')) {
    if (!/^\d+$/.test(entry) || Number(entry) === process.pid) continue
    if (!read(`/proc/${entry}/environ`)?.split('\0').includes(mark)) continue
    const id = identify(Number(entry))
    if (id) found.push(id)
  }
  return found
}

/** Sends a signal; a process that ended in between is no error. */
export function signal(pid: number, name: NodeJS.Signals): void {
  try {
    process.kill(pid, name)
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ESRCH') throw error
  }
}

/** Differs after every boot. */
export const bootId = (): string => read('/proc/sys/kernel/random/boot_id')?.trim() ?? ''

function read(path: string): string | undefined {
  try {
    return readFileSync(path, 'utf8')
  } catch {
    return undefined
  }
}
