/**
 * Real parts for the demo and the tests: an API server, databases, S3 servers, each a process of its own on a free port.
 * All are `await using`: disposing ends the process and removes what it wrote to a temporary folder. Nothing here outlives
 * the process that started it, not even after its kill -9. Only hack/ and tests import this folder.
 */
import { type ChildProcess, execFileSync, spawn } from 'node:child_process'
import { randomInt } from 'node:crypto'
import { closeSync, openSync } from 'node:fs'
import { mkdtemp, readdir, readFile, rm } from 'node:fs/promises'
import { createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'

export interface UntilOptions {
  /** Default 10 s; times `patience`. */
  timeoutMs?: number
  /** Between two tries; default 25 ms. */
  intervalMs?: number
  /** Fail at once when this program has exited. */
  unless?: Program
}

/** Where many programs share few cores, as under ./hack/test, all takes longer; what hangs is named all the same. */
export const patience = Number(process.env.SHOAL_PATIENCE ?? 1)

/**
 * Waits until `fn` returns something truthy, and returns it. A throw means "not yet".
 * @throws Error that names `what` and the last error (also its `cause`) when the time is over.
 */
export async function until<T>(
  what: string,
  fn: () => T | Promise<T>,
  { timeoutMs = 10_000, intervalMs = 25, unless }: UntilOptions = {},
): Promise<NonNullable<T>> {
  const waitMs = timeoutMs * patience
  const deadline = performance.now() + waitMs
  let last: unknown
  for (;;) {
    try {
      const value = await fn()
      if (value) return value
      last = undefined
    } catch (error) {
      last = error
    }
    if (unless && !unless.running) {
      const tail = (await unless.log()).split('\n').slice(-15).join('\n')
      throw new Error(`${what}: ${unless.name} ended (${await unless.exited})\n${tail}`, { cause: last })
    }
    if (performance.now() > deadline) {
      const why = last instanceof Error ? `: ${last.message}` : last === undefined ? '' : `: ${String(last)}`
      throw new Error(`${what}: not within ${waitMs} ms${why}`, { cause: last })
    }
    await delay(intervalMs)
  }
}

const givenPorts = new Set<number>()

/**
 * A port of 127.0.0.1 that is free and was not given before. From below the range that the system gives to outgoing
 * connections, so that it stays free until the process it is for listens on it.
 */
export async function freePort(): Promise<number> {
  for (let attempt = 0; attempt < 200; attempt++) {
    const port = randomInt(12_000, 32_000)
    if (givenPorts.has(port) || !(await isFree(port))) continue
    givenPorts.add(port)
    return port
  }
  throw new Error('no free port between 12000 and 32000')
}

function isFree(port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const server = createServer()
    server.once('error', () => resolve(false))
    server.listen(port, '127.0.0.1', () => server.close(() => resolve(true)))
  })
}

export interface TemporaryDir extends AsyncDisposable {
  path: string
}

/** A new folder in the system's temporary folder; removed on dispose. */
export async function temporaryDir(prefix: string): Promise<TemporaryDir> {
  const path = await mkdtemp(join(tmpdir(), `${prefix}-`))
  return {
    path,
    async [Symbol.asyncDispose]() {
      // A process that is just ending may still write into it.
      await rm(path, { recursive: true, force: true, maxRetries: 5 })
    },
  }
}

export interface ProgramOptions {
  /** In messages; default: the command. */
  name?: string
  /** Standard output and error are appended to it. */
  logFile: string
  cwd?: string
  /** The whole environment but for PATH and where Node keeps what it compiled, which are ours; default: ours. */
  env?: NodeJS.ProcessEnv
}

/** A running process. Disposing kills it. */
export interface Program extends AsyncDisposable {
  readonly name: string
  readonly pid: number
  readonly logFile: string
  readonly running: boolean
  /** How it ended: 'code 1' or 'SIGKILL'. */
  readonly exited: Promise<string>
  /** SIGTERM, and SIGKILL when it is still there after `timeoutMs` (10 s). */
  stop(options?: { timeoutMs?: number }): Promise<void>
  /** SIGKILL; returns when it is gone. */
  kill(): Promise<void>
  /** Alive but answering nobody; returns when all its threads stand still, where the system shows them. */
  pause(): Promise<void>
  resume(): void
  signal(name: NodeJS.Signals): void
  log(): Promise<string>
}

/** Starts a program that ends with this process at the latest. One that can't be found ends at once; its log says so. */
export function startProgram(command: string, args: string[], options: ProgramOptions): Program {
  const log = openSync(options.logFile, 'a')
  const { PATH, NODE_COMPILE_CACHE } = process.env
  const child = spawn(...endingWithUs(command, args), {
    stdio: ['ignore', log, log],
    ...(options.cwd === undefined ? {} : { cwd: options.cwd }),
    ...(options.env === undefined ? {} : { env: { PATH, NODE_COMPILE_CACHE, ...options.env } }),
  })
  closeSync(log)
  return new ChildProgram(child, options.name ?? command, options.logFile)
}

/** What to spawn so that the kernel ends it when this process dies, where it can. */
export function endingWithUs(command: string, args: string[]): [string, string[]] {
  return hasSetpriv() ? ['setpriv', ['--pdeathsig', 'KILL', '--', command, ...args]] : [command, args]
}

class ChildProgram implements Program {
  readonly name: string
  readonly logFile: string
  readonly exited: Promise<string>
  readonly #child: ChildProcess

  constructor(child: ChildProcess, name: string, logFile: string) {
    this.#child = child
    this.name = name
    this.logFile = logFile
    this.exited = new Promise((resolve) => {
      child.once('error', (error) => resolve(error.message))
      child.once('exit', (code, signal) => resolve(signal ?? `code ${code}`))
    })
    if (!hasSetpriv() && child.pid !== undefined) watchOver(child)
  }

  get pid(): number {
    if (this.#child.pid === undefined) throw new Error(`${this.name} did not start`)
    return this.#child.pid
  }

  get running(): boolean {
    return this.#child.pid !== undefined && this.#child.exitCode === null && this.#child.signalCode === null
  }

  signal(name: NodeJS.Signals): void {
    if (this.running) this.#child.kill(name)
  }

  async pause(): Promise<void> {
    this.signal('SIGSTOP')
    await until(`${this.name} stands still`, () => standsStill(this.pid), { intervalMs: 1, unless: this })
  }

  resume(): void {
    this.signal('SIGCONT')
  }

  async stop({ timeoutMs = 10_000 } = {}): Promise<void> {
    this.signal('SIGTERM')
    const timer = setTimeout(() => this.signal('SIGKILL'), timeoutMs)
    await this.exited
    clearTimeout(timer)
  }

  async kill(): Promise<void> {
    this.signal('SIGKILL')
    await this.exited
  }

  log(): Promise<string> {
    return readFile(this.logFile, 'utf8').catch(() => '')
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.kill()
  }
}

/** A stop takes hold of each thread when it is next scheduled. Without /proc (macOS) it is taken to have done so. */
async function standsStill(pid: number): Promise<boolean> {
  const threads = await readdir(`/proc/${pid}/task`).catch(() => [])
  const states = await Promise.all(threads.map((thread) => readFile(`/proc/${pid}/task/${thread}/stat`, 'utf8')))
  return states.every((stat) => /\) [TZX]/.test(stat))
}

let setpriv: boolean | undefined

/** util-linux's setpriv lets the kernel end the child with us. */
function hasSetpriv(): boolean {
  if (setpriv === undefined) {
    try {
      if (process.env.SHOAL_NO_SETPRIV) throw new Error('not wanted')
      execFileSync('setpriv', ['--pdeathsig', 'KILL', '--', 'true'], { stdio: 'ignore' })
      setpriv = true
    } catch {
      setpriv = false
    }
  }
  return setpriv
}

/** Without setpriv (macOS): a shell whose input ends when we do, and that then ends the child. */
function watchOver(child: ChildProcess): void {
  const watcher = spawn('/bin/sh', ['-c', 'cat >/dev/null; kill -KILL "$1"', 'sh', String(child.pid)], {
    stdio: ['pipe', 'ignore', 'ignore'],
    detached: true,
  })
  watcher.unref()
  const input = watcher.stdin as unknown as { unref?(): void } | null
  input?.unref?.()
  child.once('exit', () => watcher.kill('SIGKILL'))
}
