import { spawn } from 'node:child_process'
import { ShoalError, Transient } from '../api/errors.ts'

export interface GitOptions {
  /** Where it runs; for `init` and `ls-remote` anywhere. */
  dir?: string | undefined
  credentials?: { username?: string | undefined; password?: string | undefined } | undefined
  signal: AbortSignal
  /** What it may print. Default: 8 MiB. */
  maxBytes?: number
}

// Credentials go by environment to an inline helper: they are on no command line and in no file.
const credentialHelper =
  '!f() { test "$1" = get && printf "username=%s\\npassword=%s\\n" "$SHOAL_GIT_USERNAME" "$SHOAL_GIT_PASSWORD"; }; f'

/**
 * Runs git with no configuration but the repository's own, without prompts; what it printed. Throws Transient
 * `SourceUnreachable` with what git says, `Timeout` when the signal aborted it, `TooLarge`.
 */
export function runGit(args: string[], options: GitOptions): Promise<Buffer> {
  const { dir, credentials, signal, maxBytes = 8 << 20 } = options
  const helper = credentials?.password === undefined ? [] : ['-c', `credential.helper=${credentialHelper}`]
  const child = spawn('git', ['-c', 'credential.helper=', ...helper, ...args], {
    cwd: dir,
    signal,
    killSignal: 'SIGKILL',
    stdio: ['ignore', 'pipe', 'pipe'],
    env: {
      PATH: process.env.PATH,
      HOME: '/nonexistent',
      LC_ALL: 'C',
      GIT_CONFIG_NOSYSTEM: '1',
      GIT_CONFIG_GLOBAL: '/dev/null',
      GIT_TERMINAL_PROMPT: '0',
      GIT_ALLOW_PROTOCOL: 'file:git:http:https:ssh',
      GIT_SSH_COMMAND: 'ssh -o BatchMode=yes',
      // A local repository may belong to somebody else; nothing of its configuration is run.
      GIT_CONFIG_COUNT: '1',
      GIT_CONFIG_KEY_0: 'safe.directory',
      GIT_CONFIG_VALUE_0: '*',
      SHOAL_GIT_USERNAME: credentials?.username,
      SHOAL_GIT_PASSWORD: credentials?.password,
    },
  })
  return new Promise((resolve, reject) => {
    const out: Buffer[] = []
    let outBytes = 0
    let complaint = ''
    child.stdout.on('data', (chunk: Buffer) => {
      outBytes += chunk.length
      if (outBytes <= maxBytes) out.push(chunk)
      else child.kill('SIGKILL')
    })
    child.stderr.on('data', (chunk: Buffer) => {
      complaint = (complaint + chunk.toString()).slice(-2000)
    })
    child.on('error', (cause) =>
      reject(
        signal.aborted
          ? new Transient('Timeout', `git ${args[0]} took too long`, { cause })
          : new ShoalError('ConfigInvalid', 'git can’t be run', { cause }),
      ),
    )
    child.on('close', (code) => {
      if (code === 0) resolve(Buffer.concat(out))
      else if (outBytes > maxBytes) reject(new ShoalError('TooLarge', `git ${args[0]} prints too much`))
      else reject(new Transient('SourceUnreachable', `git ${args[0]}: ${reason(complaint)}`))
    })
  })
}

/** Advice may follow it. */
const reason = (text: string) => /^(?:fatal|error): .*/m.exec(text)?.[0] ?? text.trim().split('\n').at(-1) ?? 'failed'
