/**
 * Runs checks and test files for hack/test: each in a process group of its own, with a time limit, and with nothing left
 * running after it.
 */
import { execFile, spawn } from 'node:child_process'
import { promisify } from 'node:util'
import { endingWithUs } from '../parts/process.ts'

interface GroupOptions {
  cwd: string
  timeoutMs: number
  env: NodeJS.ProcessEnv
  signal: AbortSignal
}

export interface GroupResult {
  /** 'code 0', 'SIGKILL', 'timeout', or the error of starting it. */
  end: string
  /** Standard output and error as they came, without colours. */
  output: string
  seconds: number
  /** Commands that were still running afterwards; they are ended. */
  leftovers: string[]
}

/** Runs a command to its end, with all that it starts. */
export async function runGroup(command: string, args: string[], options: GroupOptions): Promise<GroupResult> {
  const started = performance.now()
  const child = spawn(...endingWithUs(command, args), {
    cwd: options.cwd,
    env: options.env,
    stdio: ['ignore', 'pipe', 'pipe'],
    detached: true,
  })
  const chunks: Buffer[] = []
  child.stdout.on('data', (chunk: Buffer) => chunks.push(chunk))
  child.stderr.on('data', (chunk: Buffer) => chunks.push(chunk))
  let timedOut = false
  const kill = () => endGroup(child.pid)
  const timer = setTimeout(() => {
    timedOut = true
    kill()
  }, options.timeoutMs)
  options.signal.addEventListener('abort', kill)
  const end = await new Promise<string>((resolve) => {
    child.once('error', (error) => resolve(error.message))
    child.once('exit', (code, signal) => resolve(signal ?? `code ${code}`))
  })
  clearTimeout(timer)
  options.signal.removeEventListener('abort', kill)
  const leftovers = timedOut || options.signal.aborted ? [] : await leftIn(child.pid)
  kill()
  // After the last process that holds the pipes is gone.
  await Promise.all([closed(child.stdout), closed(child.stderr)])
  return {
    end: timedOut ? 'timeout' : end,
    output: stripColours(Buffer.concat(chunks).toString()),
    seconds: (performance.now() - started) / 1000,
    leftovers,
  }
}

function endGroup(leader: number | undefined): void {
  try {
    if (leader !== undefined) process.kill(-leader, 'SIGKILL')
  } catch {
    // Nobody is left in it.
  }
}

/** What is still running a second after the leader's end. Programs that the kernel ends with their parent need a moment. */
async function leftIn(leader: number | undefined): Promise<string[]> {
  const deadline = performance.now() + 1000
  for (;;) {
    const left = await members(leader)
    if (left.length === 0 || performance.now() > deadline) return left
    await new Promise((resolve) => setTimeout(resolve, 50))
  }
}

async function members(leader: number | undefined): Promise<string[]> {
  try {
    if (leader === undefined) return []
    process.kill(-leader, 0)
  } catch {
    return []
  }
  // A dead process that nobody has waited for yet (Z) is still in the group.
  const list = await promisify(execFile)('ps', ['-Ao', 'pgid=,stat=,args=']).catch(() => ({ stdout: '' }))
  return list.stdout
    .split('\n')
    .map((line) => line.trim().split(/\s+/))
    .filter(([group, state]) => group === String(leader) && !state?.startsWith('Z'))
    .map(([, , ...command]) => command.join(' ').slice(0, 150))
}

async function closed(stream: NodeJS.ReadableStream & { closed?: boolean; destroy(): void }): Promise<void> {
  if (stream.closed) return
  await new Promise<void>((resolve) => {
    // A process that left the group may hold the pipe for ever.
    const timer = setTimeout(() => stream.destroy(), 1000)
    stream.once('close', () => {
      clearTimeout(timer)
      resolve()
    })
  })
}

// biome-ignore lint/suspicious/noControlCharactersInRegex: that is what colours are made of
const stripColours = (text: string) => text.replace(/\x1b\[[0-9;]*m/g, '')
