import { type ChildProcess, fork } from 'node:child_process'
import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { Database } from '../../../runtime/sql.ts'
import type { PollersMessage, PollersSettings } from './pollers.ts'

/** A process of light machines; its settings are written to a file below `dir`. */
export async function startPollers(dir: string, settings: PollersSettings): Promise<ChildProcess> {
  const file = join(dir, `pollers-${settings.region}-${settings.names[0]}-${settings.waitMs}.json`)
  await writeFile(file, JSON.stringify(settings))
  return fork(join(import.meta.dirname, 'pollers.ts'), [file], { stdio: ['ignore', 'inherit', 'inherit', 'ipc'] })
}

/** Enrols machines of namespace demo, all with one key. */
export async function enrolAll(databaseUrl: string, names: string[], publicKey: string): Promise<void> {
  await using database = new Database(databaseUrl)
  for (let at = 0; at < names.length; at += 1000)
    await database.execute('INSERT INTO machine (name, public_key, labels, namespaces) VALUES ?', [
      names.slice(at, at + 1000).map((name) => [name, publicKey, '{}', '["demo"]']),
    ])
}

type Of<Is extends PollersMessage['is']> = Extract<PollersMessage, { is: Is }>

/** The next such message. */
export function message<Is extends PollersMessage['is']>(
  child: ChildProcess,
  is: Is,
  fits: (message: Of<Is>) => boolean = () => true,
): Promise<Of<Is>> {
  return new Promise((resolve, reject) => {
    const gone = (code: number | null) => reject(new Error(`a process of the bench ended: ${code}`))
    const hear = (said: PollersMessage) => {
      if (said.is !== is || !fits(said as Of<Is>)) return
      child.off('message', hear)
      child.off('exit', gone)
      resolve(said as Of<Is>)
    }
    child.on('message', hear)
    child.once('exit', gone)
  })
}

/** Kills it; returns when it is gone. */
export async function end(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return
  const gone = new Promise((resolve) => child.once('exit', resolve))
  child.kill('SIGKILL')
  await gone
}
