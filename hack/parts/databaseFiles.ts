import { execFile, execFileSync } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { existsSync, realpathSync } from 'node:fs'
import { cp, mkdir, rename, rm } from 'node:fs/promises'
import { homedir } from 'node:os'
import { dirname, join } from 'node:path'
import { promisify } from 'node:util'
import { findProgram, installDebianPackage } from './programs.ts'

interface ServerProgram {
  server: string
  mariadb: boolean
  version: string
}

/** The installed MySQL or MariaDB server. @throws Error saying what to install when there is none. */
export function serverProgram(): ServerProgram {
  const find = () => findProgram('mariadbd', 'mysqld')
  const server = find() ?? (installDebianPackage('mariadb-server-core') ? find() : undefined)
  if (!server) {
    throw new Error(
      'missing: MySQL (8.0.1 or newer) or MariaDB (10.6 or newer). Install one (Debian: apt-get install mariadb-server), or set SHOAL_MYSQL_URL',
    )
  }
  const version = execFileSync(server, ['--no-defaults', '--version'], { encoding: 'utf8' }).trim()
  return { server, mariadb: version.includes('MariaDB'), version }
}

/**
 * Makes an empty data folder, if it isn't there. Initialising takes 2 s and more, copying 0.1 s: it is done once per
 * server version, into the cache.
 */
export async function newDataDir(program: ServerProgram, dataDir: string): Promise<void> {
  if (existsSync(dataDir)) return
  const cache = join(process.env.XDG_CACHE_HOME || join(homedir(), '.cache'), 'shoal')
  const template = join(cache, `database-${program.version.replace(/^.*Ver /, '').replace(/[^\w.-]+/g, '-')}`)
  if (!existsSync(template)) {
    const made = `${template}.${randomBytes(4).toString('hex')}`
    await mkdir(cache, { recursive: true })
    await initialise(program, made)
    // Someone else may have been quicker: theirs is as good.
    await rename(made, template).catch(() => rm(made, { recursive: true, force: true }))
  }
  await mkdir(dirname(dataDir), { recursive: true })
  await cp(template, `${dataDir}.new`, { recursive: true, preserveTimestamps: true })
  // MySQL's identity in replication; a new one is made.
  await rm(join(`${dataDir}.new`, 'auto.cnf'), { force: true })
  await rename(`${dataDir}.new`, dataDir)
}

async function initialise(program: ServerProgram, dataDir: string): Promise<void> {
  const user = process.getuid?.() === 0 ? ['--user=root'] : []
  const run = promisify(execFile)
  if (!program.mariadb) {
    await run(program.server, [
      '--no-defaults',
      ...user,
      '--secure-file-priv=NULL',
      '--initialize-insecure',
      `--datadir=${dataDir}`,
    ])
    return
  }
  const install = findProgram('mariadb-install-db', 'mysql_install_db')
  if (!install) throw new Error('missing: mariadb-install-db, which comes with the MariaDB server')
  // Its share folder is found from where the server really is: /usr/sbin/mariadbd -> /usr.
  const base = join(realpathSync(program.server), '../..')
  await run(install, [
    '--no-defaults',
    ...user,
    `--basedir=${base}`,
    `--datadir=${dataDir}`,
    '--auth-root-authentication-method=normal',
    '--skip-test-db',
    '--innodb-log-file-size=16M',
  ])
}
