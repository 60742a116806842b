import { readFileSync, statSync } from 'node:fs'
import type { Run } from './protocol.ts'

export interface User {
  uid: number
  gid: number
}

/**
 * Who the application runs as: the named user of this machine; without a name, nobody where we are root, else
 * ourselves. Never root: a tenant's application must not own the machine. Throws an Error that says why not.
 */
export function findUser(name: string | undefined): User | undefined {
  const ownUid = process.getuid?.() ?? 0
  if (name === undefined && ownUid !== 0) return undefined
  const user = lookUp(name ?? 'nobody')
  if (!user) {
    if (name === undefined) return { uid: 65_534, gid: 65_534 }
    throw new Error(`there is no user ${name} on this machine`)
  }
  if (user.uid === 0) throw new Error('an application may not run as root')
  if (ownUid === 0) return user
  if (user.uid !== ownUid) throw new Error(`only root can start an application as ${name}`)
  return undefined
}

function lookUp(name: string): User | undefined {
  for (const line of readFileSync('/etc/passwd', 'utf8').split('\n')) {
    const [user, , uid, gid] = line.split(':')
    if (user === name) return { uid: Number(uid), gid: Number(gid) }
  }
  return undefined
}

/** NAME=value lines; `#` begins a comment. Only what the application's own user may read is read for it. */
function readEnvFile(path: string, user: User | undefined): Record<string, string> {
  if (user) {
    const { mode, uid, gid } = statSync(path)
    const readable = mode & 0o004 || (uid === user.uid && mode & 0o400) || (gid === user.gid && mode & 0o040)
    if (!readable) throw new Error(`${path}: the application's user may not read it`)
  }
  const env: Record<string, string> = {}
  for (const line of readFileSync(path, 'utf8').split('\n')) {
    const [, name, value] = /^\s*([A-Za-z_][A-Za-z0-9_]*)=(.*)$/.exec(line) ?? []
    if (name !== undefined && value !== undefined) env[name] = value.replace(/^(["'])(.*)\1\s*$/, '$2')
  }
  return env
}

/** What an application and its probes are started with. @throws Error when its file of variables can't be read. */
export function environmentOf(run: Run, user: User | undefined): Record<string, string> {
  return {
    PATH: '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin',
    ...run.env,
    ...(run.envFile !== undefined && readEnvFile(run.envFile, user)),
  }
}
