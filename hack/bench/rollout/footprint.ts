import { readFileSync } from 'node:fs'

/** Resident memory of a process, and its CPU time so far: of all threads, to 10 ms. */
export function footprintOf(pid = 0): { megabytes: number; cpuMs: number } {
  const [, kilobytes = '0'] = /VmRSS:\s+(\d+) kB/.exec(readFileSync(`/proc/${pid}/status`, 'utf8')) ?? []
  const fields = readFileSync(`/proc/${pid}/stat`, 'utf8').split(') ')[1]?.split(' ') ?? []
  return { megabytes: Number(kilobytes) / 1000, cpuMs: (Number(fields[11]) + Number(fields[12])) * 10 }
}

/** Looks at processes from now on; what is returned tells how each did until then. */
export function watchFootprints(pids: Map<string, number>): () => Map<string, { megabytes: number; cores: number }> {
  const before = new Map([...pids].map(([name, pid]) => [name, footprintOf(pid).cpuMs]))
  const fromMs = performance.now()
  return () => {
    const tookMs = performance.now() - fromMs
    return new Map(
      [...pids].map(([name, pid]) => {
        const { megabytes, cpuMs } = footprintOf(pid)
        return [name, { megabytes, cores: (cpuMs - (before.get(name) ?? 0)) / tookMs }]
      }),
    )
  }
}
