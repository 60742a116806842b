import { copyFileSync, existsSync, mkdirSync, renameSync, statSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'

/**
 * This Node, where any user can run it. Builds and applications run as users of their own, who can't reach what is in
 * somebody's home folder, as a cache below /root: then it is a copy in the system's temporary folder, made once.
 */
export function reachableNode(): string {
  const own = process.execPath
  if (isReachable(own)) return own
  const { size, mtimeMs } = statSync(own)
  const copy = join(
    tmpdir(),
    `shoal-node-${process.version}-${process.getuid?.() ?? 0}-${size}-${Math.round(mtimeMs)}`,
    'node',
  )
  if (existsSync(copy)) return copy
  mkdirSync(dirname(copy), { recursive: true, mode: 0o755 })
  const partial = `${copy}.${process.pid}`
  copyFileSync(own, partial)
  renameSync(partial, copy)
  return copy
}

function isReachable(path: string): boolean {
  for (let folder = dirname(path); ; folder = dirname(folder)) {
    if ((statSync(folder).mode & 0o001) === 0) return false
    if (folder === dirname(folder)) return true
  }
}
