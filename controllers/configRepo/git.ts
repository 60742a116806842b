/**
 * controllers/configRepo/: applies what is merged into a configuration repository, with the rights of the
 * ServiceAccount the ConfigRepo names and in its own namespace only, all objects or none. Hub only.
 *
 * The repository is read from git's object store, never from a work tree: a symlink, a filter or a submodule in it
 * is then only an entry that is passed over, and can't make us read or run anything.
 */
import { Stalled, Transient } from '../../api/errors.ts'
import { runGit } from '../../runtime/git.ts'

export interface Remote {
  url: string
  branch: string
  username?: string | undefined
  password?: string | undefined
}

/** A regular file of a commit; `path` is relative to the repository's root. */
export interface SourceFile {
  path: string
  text: string
}

const maxFileBytes = 1 << 20
const maxTotalBytes = 16 << 20
const maxFiles = 1000

/** The commit at the tip of the branch. Throws `SourceUnreachable`, or Stalled `ConfigRepoInvalid` without such a branch. */
export async function branchTip(remote: Remote, signal: AbortSignal): Promise<string> {
  const ref = `refs/heads/${remote.branch}`
  const answer = await runGit(['ls-remote', '--', remote.url, ref], { credentials: remote, signal })
  const commit = /^([0-9a-f]{40})\t/m.exec(answer.toString())?.[1]
  if (commit === undefined) throw new Stalled('ConfigRepoInvalid', `${remote.url} has no branch ${remote.branch}`)
  return commit
}

/** Fetches one commit of the branch, without history, into the empty folder `dir` as a bare repository. */
export async function fetchCommit(remote: Remote, commit: string, into: { dir: string; signal: AbortSignal }) {
  const { dir, signal } = into
  await runGit(['init', '--quiet', '--bare', dir], { signal })
  const fetch = ['fetch', '--quiet', '--depth=1', '--no-tags', '--no-recurse-submodules', '--', remote.url]
  await runGit([...fetch, `refs/heads/${remote.branch}`], { credentials: remote, signal, dir })
  const fetched = (await runGit(['rev-parse', 'FETCH_HEAD'], { signal, dir })).toString().trim()
  if (fetched !== commit) throw new Transient('SourceUnreachable', `${remote.branch} moved on while it was fetched`)
}

/** The YAML files of a commit under `path` (`.` for all), by path. Throws Stalled `ConfigRepoInvalid` beyond the limits. */
export async function yamlFiles(commit: string, from: { dir: string; path: string; signal: AbortSignal }) {
  const { dir, path, signal } = from
  const folder = path.split('/').filter((part) => part !== '' && part !== '.')
  if (folder.includes('..')) throw new Stalled('ConfigRepoInvalid', `path ${path} points outside the repository`)
  const tree = `${commit}:${folder.join('/')}`
  const kind = await runGit(['cat-file', '-t', tree], { signal, dir }).catch(() => undefined)
  if (kind?.toString().trim() !== 'tree')
    throw new Stalled('ConfigRepoInvalid', `path ${path} is no folder of the repository`)
  const list = (await runGit(['ls-tree', '-r', '-z', '-l', tree], { signal, dir })).toString()
  const found: { path: string; id: string }[] = []
  let totalBytes = 0
  for (const [, mode, id, size, name] of list.matchAll(/(\d+) \w+ ([0-9a-f]+) +([\d-]+)\t([^\0]+)\0/g)) {
    if (!mode?.startsWith('100') || !/\.ya?ml$/i.test(name ?? '')) continue
    const file = [...folder, name].join('/')
    totalBytes += Number(size)
    if (Number(size) > maxFileBytes)
      throw new Stalled('ConfigRepoInvalid', `${file} is larger than ${maxFileBytes} bytes`)
    found.push({ path: file, id: id ?? '' })
  }
  if (found.length > maxFiles) throw new Stalled('ConfigRepoInvalid', `more than ${maxFiles} YAML files under ${path}`)
  if (totalBytes > maxTotalBytes)
    throw new Stalled('ConfigRepoInvalid', `the YAML files under ${path} are larger than ${maxTotalBytes} bytes`)
  const files: SourceFile[] = []
  for (const { path, id } of found) {
    files.push({ path, text: (await runGit(['cat-file', 'blob', id], { signal, dir })).toString() })
  }
  return files.sort((a, b) => (a.path < b.path ? -1 : 1))
}
