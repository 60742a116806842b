import { execFile } from 'node:child_process'
import { existsSync, readFileSync } from 'node:fs'
import { promisify } from 'node:util'

const run = promisify(execFile)

/** Where everybody may write, on disk. */
export const sharedFolders = ['/tmp', '/var/tmp']
/** The same; what is in them is memory. */
export const memoryFolders = ['/dev/shm', '/dev/mqueue']

/** The tables of System V objects, and ipcrm's option for each. */
const ipcTables = { shm: '--shmem-id', msg: '--queue-id', sem: '--semaphore-id' }

/**
 * For find: files of the user. Folders where that user can't make any are not gone into, as there may be very many: the
 * workspace itself is one.
 */
export function onlyOf(uid: number): string[] {
  const isTheirs = ['-uid', String(uid)]
  return ['-type', 'd', '!', ...isTheirs, '!', '-perm', '-0002', '-prune', '-o', ...isTheirs]
}

/**
 * Removes what a build's user left where no folder of its own held it: files that others could find, and System V
 * memory, queues and semaphores, which would be there until the machine is started anew. Its processes must be gone.
 */
export async function removeLeftovers(uid: number): Promise<void> {
  const folders = [...sharedFolders, ...memoryFolders].filter((folder) => existsSync(folder))
  // In the folder that find has open: by its path another user might lead us elsewhere meanwhile.
  const remove = ['-execdir', 'rm', '-rf', '--', '{}', '+', '-prune']
  await run('find', ['-P', ...folders, '-xdev', ...onlyOf(uid), ...remove], { env: { PATH: '/usr/bin:/bin' } }).catch(
    () => undefined,
  )
  const objects = Object.entries(ipcTables).flatMap(([table, option]) =>
    idsOf(table, uid).flatMap((id) => [option, id]),
  )
  // As the user whose they are: root in a container may lack the right to remove them.
  if (objects.length > 0) await run('ipcrm', objects, { uid, gid: uid })
}

function idsOf(table: string, uid: number): string[] {
  const text = readText(`/proc/sysvipc/${table}`)
  const [names = [], ...lines] = text.split('\n').map((line) => line.trim().split(/\s+/))
  return lines
    .filter((line) => ['uid', 'cuid'].some((name) => line[names.indexOf(name)] === String(uid)))
    .map(([, id = '']) => id)
}

function readText(path: string): string {
  try {
    return readFileSync(path, 'utf8')
  } catch {
    return ''
  }
}
