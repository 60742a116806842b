import { spawn } from 'node:child_process'
import { closeSync, fstatSync, openSync } from 'node:fs'
import { stat } from 'node:fs/promises'

/**
 * Locks a folder, among all processes that see it, in whatever container, until the lock is disposed or this process
 * ends, in whatever way; undefined when another holds it for longer than `waitMs`, or the folder is gone.
 *
 * The lock belongs to the open file, not to who asked for it (flock(2)): flock(1) takes it on our own descriptor and
 * ends, and nobody else has that descriptor.
 *
 * @throws when there is no flock(1), or the folder can't be opened; the signal's AbortError
 */
export async function lockFolder(
  path: string,
  { waitMs, signal }: { waitMs: number; signal?: AbortSignal | undefined },
): Promise<Disposable | undefined> {
  const file = openThere(path)
  if (file === undefined) return undefined
  let isLocked = false
  try {
    isLocked = (await flock(file, waitMs, signal)) && (await inodeOf(path)) === fstatSync(file).ino
  } finally {
    if (!isLocked) closeSync(file)
  }
  return isLocked ? { [Symbol.dispose]: () => closeSync(file) } : undefined
}

function openThere(path: string): number | undefined {
  try {
    return openSync(path, 'r')
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined
    throw error
  }
}

const inodeOf = async (path: string) => (await stat(path).catch(() => undefined))?.ino

function flock(file: number, waitMs: number, signal: AbortSignal | undefined): Promise<boolean> {
  const child = spawn('flock', ['--exclusive', '--wait', String(waitMs / 1000), '3'], {
    stdio: ['ignore', 'ignore', 'ignore', file],
    ...(signal && { signal }),
  })
  return new Promise((resolve, reject) => {
    child.once('error', reject)
    child.once('exit', (code) => resolve(code === 0))
  })
}
