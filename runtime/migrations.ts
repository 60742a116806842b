import { readdir, readFile } from 'node:fs/promises'
import { join } from 'node:path'
import type { PoolConnection } from 'mysql2/promise'
import { ShoalError, Transient } from '../api/errors.ts'

const lockName = "CONCAT('shoal:', LEFT(DATABASE(), 40))"
const createTable = `CREATE TABLE IF NOT EXISTS schema_migration (
  version INT NOT NULL PRIMARY KEY, name VARCHAR(191) NOT NULL, applied_at DATETIME(3) NOT NULL)`

/**
 * Brings a schema up to date by the directory's files `0001_name.sql`, under a lock of the server: replicas that start
 * together wait for one another. A file is recorded once all of it ran; DDL can't be rolled back, so a file that could
 * fail half-way must bear being run again. Throws `SchemaTooNew` when a newer version was here.
 */
export async function migrate(connection: PoolConnection, directory: string): Promise<void> {
  const files = (await readdir(directory)).filter((name) => /^\d{4}[_-].+\.sql$/.test(name)).sort()
  const [lock] = await rows<{ got: number }>(connection, `SELECT GET_LOCK(${lockName}, 60) AS got`)
  if (lock?.got !== 1) throw new Transient('Timeout', 'another replica holds the migration lock')
  try {
    await connection.query(createTable)
    const known = await rows<{ version: number }>(connection, 'SELECT version FROM schema_migration')
    const applied = new Set(known.map(({ version }) => version))
    const newest = Number(files.at(-1)?.slice(0, 4) ?? 0)
    const unknown = Math.max(0, ...applied)
    if (unknown > newest)
      throw new ShoalError('SchemaTooNew', `the database has migration ${unknown}; this version knows ${newest}`)
    for (const file of files) {
      const version = Number(file.slice(0, 4))
      if (applied.has(version)) continue
      for (const statement of statements(await readFile(join(directory, file), 'utf8')))
        await connection.query(statement)
      await connection.query('INSERT INTO schema_migration VALUES (?, ?, UTC_TIMESTAMP(3))', [version, file])
    }
  } finally {
    await connection.query(`DO RELEASE_LOCK(${lockName})`).catch(() => undefined)
  }
}

/** SKIP LOCKED needs these versions, and is unsafe for statement-based replication. Throws `ServerUnsupported`. */
export async function requireServer(connection: PoolConnection): Promise<void> {
  const [row] = await rows<{ version: string; log: number; format: string }>(
    connection,
    'SELECT VERSION() AS version, @@log_bin AS log, @@binlog_format AS format',
  )
  const problem = row === undefined ? 'unknown' : unsupported(row)
  if (problem !== undefined) throw new ShoalError('ServerUnsupported', `the database server: ${problem}`)
}

/** Why this server won't do, or undefined when it will. */
export function unsupported(server: { version: string; log: number; format: string }): string | undefined {
  // MariaDB's own clients put `5.5.5-` before it.
  const text = server.version.replace(/^5\.5\.5-/, '')
  const [major = 0, minor = 0, patch = 0] = text.split(/[.-]/).map(Number)
  const number = major * 1e6 + minor * 1e3 + (patch || 0)
  const least = text.includes('MariaDB') ? 10_006_000 : 8_000_001
  if (!(number >= least)) return `version ${server.version}`
  return server.log && server.format !== 'ROW' ? `binlog_format ${server.format}, not ROW` : undefined
}

/** The statements of a file: each ends with a semicolon at the end of a line; comments have lines of their own. */
export const statements = (text: string): string[] =>
  text
    .replace(/^[ \t]*--.*$/gm, '')
    .split(/;[ \t]*\r?(?:\n|$)/)
    .map((part) => part.trim())
    .filter((part) => part !== '')

async function rows<T>(connection: PoolConnection, sql: string): Promise<T[]> {
  const [result] = await connection.query(sql)
  return result as T[]
}
