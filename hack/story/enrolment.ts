import { createHash } from 'node:crypto'
import { statSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'

/**
 * Where the machines of the demo in `dir` keep their disks: below it, or, when another user (the one that applications
 * run as) can't reach it there, as below /root, in the system's temporary folder.
 */
export function machinesDir(dir: string): string {
  for (let folder = dirname(dir); ; folder = dirname(folder)) {
    if ((statSync(folder).mode & 0o001) === 0) {
      return join(tmpdir(), `shoal-machines-${createHash('sha256').update(dir).digest('hex').slice(0, 12)}`)
    }
    if (folder === '/') return join(dir, 'machines')
  }
}
