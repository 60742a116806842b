import { mkdirSync } from 'node:fs'
import { join } from 'node:path'
import { Agent, request } from 'undici'
import { type Program, startProgram, until } from '../parts/process.ts'
import { marker } from './processes.ts'
import { logsDir } from './state.ts'

const root = join(import.meta.dirname, '../..')

export interface RoleOptions {
  role: 'hub' | 'worker' | 'region' | 'agent'
  /** Unique in the demo; of the log file too. */
  name: string
  /** The demo's folder. */
  dir: string
  /** `SHOAL_` is put before each name. */
  settings: Record<string, string>
}

/** Starts a role as its users do, `shoal <role>` with settings from the environment, and nothing else of ours in it. */
export function startRole({ role, name, dir, settings }: RoleOptions): Program {
  const logs = logsDir(dir)
  mkdirSync(logs, { recursive: true })
  return startProgram(process.execPath, [join(root, 'main.ts'), role], {
    name,
    logFile: join(logs, `${name}.log`),
    cwd: dir,
    env: {
      HOME: dir,
      [marker]: dir,
      ...Object.fromEntries(Object.entries(settings).map(([key, value]) => [`SHOAL_${key}`, value])),
    },
  })
}

/** Waits until the role's /readyz answers 200. */
export async function isReady(program: Program, url: string, ca?: string): Promise<void> {
  const dispatcher = new Agent({ connect: ca === undefined ? {} : { ca } })
  const look = async () => {
    const { statusCode, body } = await request(`${url}/readyz`, { dispatcher, signal: AbortSignal.timeout(3000) })
    const text = await body.text()
    if (statusCode !== 200) throw new Error(`/readyz: ${statusCode} ${text.slice(0, 300)}`)
    return true
  }
  try {
    await until(`${program.name} is ready`, look, { timeoutMs: 60_000, intervalMs: 100, unless: program })
  } finally {
    await dispatcher.destroy()
  }
}
