import { spawn } from 'node:child_process'
import { ShoalError, Stalled } from '../api/errors.ts'
import { durationMs } from '../api/meta.ts'
import type { ClaimedJob } from '../api/workerApi.ts'
import type { BuildLog } from './buildLog.ts'
import { type BuildUser, endProcesses } from './buildUser.ts'

export interface BuildOptions {
  /** The checkout, where the command runs. */
  dir: string
  home: string
  tmp: string
  user: BuildUser
  log: BuildLog
  signal: AbortSignal
}

const flushMs = 500
const messageBytes = 2000

/**
 * Runs the pipeline's command in the checkout, with an environment of its own and nothing of ours in it. When it ends,
 * however it ends, so does everything it started. Throws `BuildFailed`, `BuildTimeout`.
 */
export async function build(job: ClaimedJob, options: BuildOptions): Promise<void> {
  const { user, log, signal } = options
  signal.throwIfAborted()
  const timeoutMs = durationMs(job.build.timeout)
  const [command = '', ...args] = job.build.command
  const child = spawn(command, args, {
    cwd: options.dir,
    env: environment(job, options),
    stdio: ['ignore', 'pipe', 'pipe'],
    detached: true,
    ...(user.uid !== undefined && { uid: user.uid, gid: user.uid }),
  })
  const decode = (stream: NodeJS.ReadableStream) =>
    stream.setEncoding('utf8').on('data', (text: string) => log.write(text))
  decode(child.stdout)
  decode(child.stderr)
  const flushing = setInterval(() => void log.flush(), flushMs)
  const overdue = AbortSignal.timeout(timeoutMs)
  const stop = AbortSignal.any([signal, overdue])
  // The build itself ends; what it left behind may hold its output open, so it is ended before that is waited for.
  const exited = new Promise<{ code: number | null; by: string | null; failure?: Error }>((resolve) => {
    child.once('error', (failure) => resolve({ code: null, by: null, failure }))
    child.once('exit', (code, by) => resolve({ code, by }))
    stop.addEventListener('abort', () => void endProcesses(user, child.pid), { once: true })
  })
  try {
    const { code, by, failure } = await exited
    await endProcesses(user, child.pid)
    await drained(child.stdout, child.stderr)
    signal.throwIfAborted()
    if (overdue.aborted) throw new Stalled('BuildTimeout', `the build took longer than ${job.build.timeout}`)
    if (failure) throw new Stalled('BuildFailed', `${command} can’t be run: ${failure.message}`, { cause: failure })
    if (code !== 0)
      throw new Stalled('BuildFailed', `${command} ended with ${by ?? code}: ${log.lastLines(messageBytes)}`)
  } finally {
    clearInterval(flushing)
    child.stdout.destroy()
    child.stderr.destroy()
  }
}

/** What comes after the end of the last process is read, but not waited for for ever. */
async function drained(...streams: NodeJS.ReadableStream[]): Promise<void> {
  const closed = streams.map(
    (stream) =>
      new Promise<void>((resolve) =>
        'readableEnded' in stream && stream.readableEnded ? resolve() : stream.once('close', resolve),
      ),
  )
  const limit = new Promise((resolve) => setTimeout(resolve, 2000).unref())
  await Promise.race([Promise.all(closed), limit])
}

function environment(job: ClaimedJob, { home, tmp }: BuildOptions): NodeJS.ProcessEnv {
  return {
    PATH: '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/go/bin',
    HOME: home,
    TMPDIR: tmp,
    LANG: 'C.UTF-8',
    CI: '1',
    SHOAL_COMMIT: job.commit,
    SHOAL_REF: job.ref,
    ...Object.fromEntries(job.build.env.map(({ name, value }) => [name, value])),
  }
}

const secretName = /SECRET|TOKEN|PASSWORD|PASSWD|CREDENTIAL|KEY/i

/** What must not stand in a log: the repository's password, and values whose names say so. */
export function secretsOf(job: ClaimedJob): string[] {
  const named = job.build.env.filter(({ name }) => secretName.test(name)).map(({ value }) => value)
  return job.source.password === undefined ? named : [job.source.password, ...named]
}

/** What a job failed with, as the hub is told. */
export function failureOf(error: unknown): { code: ShoalError['code']; message: string } {
  if (error instanceof ShoalError) return { code: error.code, message: error.message.slice(0, 4000) }
  return { code: 'Internal', message: 'the worker failed; its log says why' }
}
