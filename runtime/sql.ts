import { readdir, readFile } from 'node:fs/promises'
import { join } from 'node:path'
import mysql from 'mysql2/promise'
import { ShoalError, Transient } from '../api/errors.ts'
import { type Clock, systemClock } from './clock.ts'

export type Row = Record<string, unknown>
export type SqlValue = string | number | bigint | boolean | Date | Uint8Array | null

/** What a query runs on: a database, or a transaction in it. */
export interface Sql {
  query<T = Row>(sql: string, values?: SqlValue[]): Promise<T[]>
  execute(sql: string, values?: SqlValue[]): Promise<{ affectedRows: number; insertId: number }>
}

/** Deadlock, lock wait timeout, record changed since last read: the transaction was rolled back, so it may run again. */
const rolledBack = new Set([1205, 1213, 1020])
const lost = new Set(['PROTOCOL_CONNECTION_LOST', 'ECONNRESET', 'ECONNREFUSED', 'EPIPE', 'ETIMEDOUT'])

/**
 * One schema of a MySQL 8.0.1+ or MariaDB 10.6+ server. Sessions are READ COMMITTED (repeatable read locks gaps: an
 * idle poller would block producers), UTC, strict. BIGINT comes as number while it is safe; JSON is parsed.
 */
export class Database implements Sql, AsyncDisposable {
  readonly #pool: mysql.Pool
  readonly #clock: Clock

  constructor(url: string, options: { connectionLimit?: number; clock?: Clock } = {}) {
    this.#clock = options.clock ?? systemClock
    this.#pool = mysql.createPool({
      uri: url,
      connectionLimit: options.connectionLimit ?? 10,
      timezone: 'Z',
      supportBigNumbers: true,
      connectTimeout: 5000,
      enableKeepAlive: true,
    })
    this.#pool.on('connection', (connection) => {
      // its own statement: MySQL and MariaDB have no common variable for it
      connection.query('SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED')
      connection.query("SET SESSION time_zone = '+00:00', SESSION sql_mode = 'TRADITIONAL'")
    })
  }

  query<T = Row>(sql: string, values: SqlValue[] = []): Promise<T[]> {
    return query<T>(this.#pool, sql, values)
  }

  execute(sql: string, values: SqlValue[] = []): Promise<{ affectedRows: number; insertId: number }> {
    return execute(this.#pool, sql, values)
  }

  /**
   * Runs `work` in one transaction, again when the server rolled it back. When the connection is lost the outcome is
   * unknown, so it is run again only if `idempotent`.
   */
  async transaction<T>(
    work: (sql: Sql) => Promise<T>,
    options: { attempts?: number; idempotent?: boolean } = {},
  ): Promise<T> {
    const attempts = options.attempts ?? 8
    for (let attempt = 1; ; attempt++) {
      try {
        return await this.#attempt(work)
      } catch (error) {
        const { errno, code } = error as { errno?: number; code?: string }
        const again = rolledBack.has(errno ?? 0) || (options.idempotent === true && lost.has(code ?? ''))
        if (!again || attempt >= attempts) throw error
        await this.#clock.sleep(Math.random() * Math.min(1000, 5 * 2 ** attempt))
      }
    }
  }

  async #attempt<T>(work: (sql: Sql) => Promise<T>): Promise<T> {
    const connection = await this.#pool.getConnection()
    try {
      await connection.beginTransaction()
      const result = await work({
        query: (sql, values = []) => query(connection, sql, values),
        execute: (sql, values = []) => execute(connection, sql, values),
      })
      await connection.commit()
      connection.release()
      return result
    } catch (error) {
      // A connection that may not roll back is not given to anybody else.
      await connection.rollback().then(
        () => connection.release(),
        () => connection.destroy(),
      )
      throw error
    }
  }

  /** Unix milliseconds by the server's clock. */
  async now(): Promise<number> {
    const [row] = await this.query<{ now: number }>('SELECT CAST(UNIX_TIMESTAMP(NOW(3)) * 1000 AS UNSIGNED) AS now')
    return Number(row?.now)
  }

  /** Brings the schema up to date by `directory`'s files `0001_name.sql`, one at a time across all replicas. */
  async migrate(directory: string): Promise<void> {
    await this.#requireServer()
    const files = (await readdir(directory)).filter((name) => /^\d{4}_.+\.sql$/.test(name)).sort()
    const connection = await this.#pool.getConnection()
    try {
      const [[lock]] = (await connection.query(
        "SELECT GET_LOCK(CONCAT('shoal:', LEFT(DATABASE(), 40)), 60) AS got",
      )) as unknown as [[{ got: number }]]
      if (lock?.got !== 1) throw new Transient('Timeout', 'another replica holds the migration lock')
      await connection.query(
        'CREATE TABLE IF NOT EXISTS schema_migration (version INT NOT NULL PRIMARY KEY, name VARCHAR(191) NOT NULL, applied_at DATETIME(3) NOT NULL)',
      )
      const [rows] = (await connection.query('SELECT version FROM schema_migration')) as unknown as [
        { version: number }[],
      ]
      const applied = new Set(rows.map((row) => row.version))
      const newest = Number(files.at(-1)?.slice(0, 4) ?? 0)
      const unknown = [...applied].find((version) => version > newest)
      if (unknown !== undefined)
        throw new ShoalError('SchemaTooNew', `the database has migration ${unknown}; this version knows ${newest}`)
      for (const file of files) {
        const version = Number(file.slice(0, 4))
        if (applied.has(version)) continue
        for (const statement of statements(await readFile(join(directory, file), 'utf8')))
          await connection.query(statement)
        await connection.query('INSERT INTO schema_migration VALUES (?, ?, UTC_TIMESTAMP(3))', [version, file])
      }
    } finally {
      await connection.query("DO RELEASE_LOCK(CONCAT('shoal:', LEFT(DATABASE(), 40)))").catch(() => undefined)
      connection.release()
    }
  }

  /** SKIP LOCKED needs these versions, and is unsafe for statement-based replication. */
  async #requireServer(): Promise<void> {
    const [row] = await this.query<{ version: string; log: number; format: string }>(
      'SELECT VERSION() AS version, @@log_bin AS log, @@binlog_format AS format',
    )
    const version = row?.version ?? ''
    const [major = 0, minor = 0, patch = 0] = version.split(/[.-]/).map(Number)
    const number = major * 1e6 + minor * 1e3 + (patch || 0)
    const least = version.includes('MariaDB') ? 10_006_000 : 8_000_001
    if (number < least) throw new ShoalError('ServerUnsupported', `the server is ${version}`)
    if (row?.log && row.format !== 'ROW')
      throw new ShoalError('ServerUnsupported', `binlog_format is ${row.format}, not ROW`)
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#pool.end()
  }
}

const statements = (text: string) =>
  text
    .split(/;\s*$/m)
    .map((part) => part.trim())
    .filter((part) => part.replace(/^--.*$/gm, '').trim() !== '')

async function query<T>(on: mysql.Pool | mysql.PoolConnection, sql: string, values: SqlValue[]): Promise<T[]> {
  const [rows] = await on.query(sql, values)
  return rows as T[]
}

async function execute(
  on: mysql.Pool | mysql.PoolConnection,
  sql: string,
  values: SqlValue[],
): Promise<{ affectedRows: number; insertId: number }> {
  const [result] = await on.query(sql, values)
  const { affectedRows, insertId } = result as mysql.ResultSetHeader
  return { affectedRows, insertId }
}
