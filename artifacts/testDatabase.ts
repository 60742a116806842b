import { execFileSync, spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { createPool } from 'mysql2/promise'
export async function startDatabase(): Promise<{ createSchema(name: string): Promise<string>; stop(): Promise<void> }> {
  const dir = await mkdtemp(join(tmpdir(), 'shoal-db-'))
  execFileSync(
    'mariadb-install-db',
    ['--no-defaults', `--datadir=${dir}/data`, '--auth-root-authentication-method=normal', '--skip-test-db'],
    { stdio: 'ignore' },
  )
  const child = spawn(
    'mariadbd',
    [
      '--no-defaults',
      `--datadir=${dir}/data`,
      `--socket=${dir}/s`,
      '--skip-networking',
      '--user=root',
      '--innodb-flush-log-at-trx-commit=0',
    ],
    { stdio: 'ignore' },
  )
  for (;;) {
    try {
      const p = createPool({ socketPath: `${dir}/s`, user: 'root' })
      await p.query('select 1')
      await p.end()
      break
    } catch {
      await delay(50)
    }
  }
  return {
    async createSchema(name: string) {
      const admin = createPool({ socketPath: `${dir}/s`, user: 'root' })
      await admin.query(`CREATE DATABASE ${name}`)
      await admin.end()
      return `mysql://root@localhost/${name}?socketPath=${dir}/s`
    },
    async stop() {
      child.kill('SIGTERM')
      await once(child, 'exit')
      await rm(dir, { recursive: true, force: true })
    },
  }
}
