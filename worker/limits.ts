import { readFileSync } from 'node:fs'
import { totalmem } from 'node:os'

/** What one build may take at most. */
export interface Limits {
  /** Processes and threads at once. */
  maxProcesses: number
  /** Of all its processes together. */
  maxMemoryBytes: number
  /** Of its folders, its cache and what it leaves in folders that everybody may write to. */
  maxDiskBytes: number
}

/** Of memory, three quarters of what this machine or container has: a build must not take its worker along. */
export const defaultLimits = (): Limits => ({
  maxProcesses: 4096,
  maxMemoryBytes: Math.floor(0.75 * Math.min(process.constrainedMemory() || Infinity, totalmem())),
  maxDiskBytes: 50 * 2 ** 30,
})

const units = ['', 'Ki', 'Mi', 'Gi', 'Ti']

/** As Kubernetes writes sizes: `4Gi`. */
export function formatBytes(bytes: number): string {
  const power = Math.min(units.length - 1, Math.max(0, Math.floor(Math.log2(bytes) / 10)))
  return `${Number((bytes / 2 ** (10 * power)).toFixed(1))}${units[power]}`
}

/**
 * What each process is held to (setrlimit(2)). None of memory: of what a process reserves it may use little. Node 26 with
 * 16 threads used 125 MiB and died under RLIMIT_DATA of 3 GiB; under RLIMIT_AS of 4 GiB it has no WebAssembly.
 */
export interface ResourceLimits {
  /** Of the whole user; threads count too. */
  nproc?: number
  /** The largest file: the hard stop between two looks at the disk. */
  fsize: number
  core: number
}

const names: Record<keyof ResourceLimits, string> = {
  nproc: 'Max processes',
  fsize: 'Max file size',
  core: 'Max core file size',
}

/** Options of prlimit(1). A limit that is lower already stays: to raise it takes rights that builds don't have. */
export function prlimitOptions(wanted: ResourceLimits): string[] {
  const given = readFileSync('/proc/self/limits', 'utf8')
  return Object.entries(wanted).map(([name, value]) => {
    const line = given.split('\n').find((it) => it.startsWith(names[name as keyof ResourceLimits])) ?? ''
    const hard = Number(/^.{26}\S+ +(\S+)/.exec(line)?.[1])
    return `--${name}=${Number.isNaN(hard) ? value : Math.min(hard, value)}`
  })
}
