import { mkdir } from 'node:fs/promises'
import { dirname } from 'node:path'
import { type ErrorCode, Transient } from '../api/errors.ts'

const codes: Record<string, { code: ErrorCode; message: string }> = {
  ENOSPC: { code: 'DiskFull', message: 'the disk is full' },
  EDQUOT: { code: 'DiskFull', message: 'the quota is used up' },
  EROFS: { code: 'DiskReadOnly', message: 'the file system is mounted read-only' },
  EACCES: { code: 'DiskDenied', message: 'this user may not write there' },
  EPERM: { code: 'DiskDenied', message: 'this may not be changed' },
  EIO: { code: 'DiskFault', message: 'the disk does not work' },
}

/** What a disk refuses, as an error that passes once someone has seen to the disk; any other as it is. */
export function asDiskError(error: unknown): unknown {
  const { code = '', path, message } = error as NodeJS.ErrnoException
  const known = codes[code]
  if (!known || !('syscall' in (error as object))) return error
  return new Transient(known.code, `${known.message}: ${path ?? message}`, { cause: error })
}

/** @throws Transient `DiskFull`, `DiskReadOnly`, `DiskDenied`, `DiskFault`; and what `run` throws */
export async function diskErrors<T>(run: () => Promise<T>): Promise<T> {
  try {
    return await run()
  } catch (error) {
    throw asDiskError(error)
  }
}

/** With its parents, where they are missing. Node's own says ENOENT of a file system that is read-only. */
export async function makeFolder(path: string, mode = 0o777): Promise<void> {
  try {
    await mkdir(path, { mode })
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException
    if (code === 'EEXIST') return
    if (code !== 'ENOENT' || dirname(path) === path) throw error
    await makeFolder(dirname(path), mode)
    await makeFolder(path, mode)
  }
}
