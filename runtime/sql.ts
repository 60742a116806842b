import mysql from 'mysql2/promise'
import { Transient } from '../api/errors.ts'
import { type Clock, systemClock } from './clock.ts'
import { migrate, requireServer } from './migrations.ts'

export type Row = Record<string, unknown>
type Scalar = string | number | bigint | boolean | Date | Uint8Array | null
/** A list fills `IN (?)`; a list of lists fills `VALUES ?`. Neither may be empty. */
export type SqlValue = Scalar | Scalar[] | Scalar[][]

export type Statement = [sql: string, values: SqlValue[]]

/** What a query runs on: a database, or a transaction in it. */
export interface Sql {
  query<T = Row>(sql: string, values?: SqlValue[]): Promise<T[]>
  execute(sql: string, values?: SqlValue[]): Promise<{ affectedRows: number; insertId: number }>
}

export interface Transaction extends Sql {
  /** Several statements in one round trip, up to the first that fails. Gives the rows of each; none of a change. */
  all(statements: Statement[]): Promise<Row[][]>
  /** As `all`, with the transaction's COMMIT behind them: nothing may follow. */
  commitWith(statements: Statement[]): Promise<void>
}

interface DatabaseOptions {
  connectionLimit?: number
  /** A statement that isn't answered for so long fails, and its connection with it. Default: 30 s. */
  timeoutMs?: number
  clock?: Clock
}

/** The connection broke or was refused: whether the last statement took effect is unknown. */
class ConnectionLost extends Transient {}

const maxAttempts = 8

/** Lock wait timeout, deadlock, record changed since last read: nothing of the transaction remains, it may run again. */
const rolledBack = new Set<unknown>([1205, 1213, 1020])
/** Too many connections (2), shutting down, query's connection killed (2), read-only after a failover (2), idle too long. */
const refused = new Set<unknown>([1040, 1203, 1053, 1927, 3169, 1290, 1836, 4031])
const unreachable =
  /^(ECONN|EPIPE|ETIMEDOUT|EHOSTUNREACH|ENETUNREACH|ENOTFOUND|EAI_AGAIN|PROTOCOL_CONNECTION_LOST|PROTOCOL_SEQUENCE_TIMEOUT)/

// SET TRANSACTION can't be combined with other assignments: both servers refuse it.
const session = [
  'SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED',
  "SET SESSION time_zone = '+00:00', SESSION sql_mode = 'TRADITIONAL'",
]

/**
 * One schema of a MySQL 8.0.1+ or MariaDB 10.6+ server. Sessions are READ COMMITTED (repeatable read locks gaps: an
 * idle poller would block producers), UTC, strict. BIGINT comes as number while it is safe, sums as number, JSON as
 * text (MariaDB doesn't tell it from text). Throws Transient `Unavailable` when the server can't be reached.
 */
export class Database implements Sql, AsyncDisposable {
  readonly #pool: mysql.Pool
  readonly #clock: Clock
  readonly #timeoutMs: number

  constructor(url: string, options: DatabaseOptions = {}) {
    this.#clock = options.clock ?? systemClock
    this.#timeoutMs = options.timeoutMs ?? 30_000
    this.#pool = mysql.createPool({
      uri: url,
      connectionLimit: options.connectionLimit ?? 10,
      timezone: 'Z',
      supportBigNumbers: true,
      decimalNumbers: true,
      jsonStrings: true,
      connectTimeout: 5000,
      enableKeepAlive: true,
      // None is prepared; by default each connection has room for 16,000, which takes 10 ms to make.
      maxPreparedStatements: 1,
      // Text never becomes SQL: every value is a placeholder's.
      multipleStatements: true,
    })
    this.#pool.pool.on('connection', (connection) => {
      // Queued before anything else on this connection; one without its settings is not used.
      for (const statement of session)
        connection.query(statement, (error) => {
          if (error) connection.destroy()
        })
    })
  }

  query<T = Row>(sql: string, values: SqlValue[] = []): Promise<T[]> {
    return this.#alone(sql, values) as Promise<T[]>
  }

  /** Again when the server rolled it back. */
  execute(sql: string, values: SqlValue[] = []): Promise<{ affectedRows: number; insertId: number }> {
    return this.#alone(sql, values) as Promise<mysql.ResultSetHeader>
  }

  async #alone(sql: string, values: SqlValue[]): Promise<unknown> {
    for (let attempt = 1; ; attempt++) {
      try {
        return await this.#connected((connection) => this.#run(connection, sql, values))
      } catch (error) {
        if (!rolledBack.has((error as { errno?: unknown }).errno)) throw error
        if (attempt >= maxAttempts) throw contended(error as Error)
        await this.#pause(attempt)
      }
    }
  }

  #pause(attempt: number): Promise<void> {
    return this.#clock.sleep(Math.random() * Math.min(1000, 5 * 2 ** attempt))
  }

  /**
   * Runs `work` in one transaction, again when the server rolled it back or the connection was lost before COMMIT was
   * sent. Lost after that, its outcome is unknown: it is run again only if `idempotent`.
   */
  async transaction<T>(
    work: (sql: Transaction) => Promise<T>,
    options: { attempts?: number; idempotent?: boolean } = {},
  ): Promise<T> {
    const attempts = options.attempts ?? maxAttempts
    for (let attempt = 1; ; attempt++) {
      const progress = { committing: false }
      try {
        return await this.#attempt(work, progress)
      } catch (error) {
        const undone = rolledBack.has((error as { errno?: unknown }).errno)
        const lost = error instanceof ConnectionLost && (!progress.committing || options.idempotent === true)
        if (!undone && !lost) throw error
        if (attempt >= attempts) throw undone ? contended(error as Error) : error
        await this.#pause(attempt)
      }
    }
  }

  #attempt<T>(work: (sql: Transaction) => Promise<T>, progress: { committing: boolean }): Promise<T> {
    return this.#connected(async (connection) => {
      // The start goes along with the first statement: a round trip less.
      let start: Statement[] = [['START TRANSACTION', []]]
      const all = async (statements: Statement[]): Promise<unknown[]> => {
        const whole = [...start, ...statements]
        start = []
        const sql = whole.map(([text]) => text).join(';\n')
        const result = await this.#run(
          connection,
          sql,
          whole.flatMap(([, values]) => values),
        )
        return whole.length === 1 ? [result] : (result as unknown[]).slice(whole.length - statements.length)
      }
      let committed = false
      const one = async (sql: string, values: SqlValue[] = []) => (await all([[sql, values]]))[0]
      try {
        const result = await work({
          query: async <R>(sql: string, values?: SqlValue[]) => (await one(sql, values)) as R[],
          execute: async (sql, values) => (await one(sql, values)) as mysql.ResultSetHeader,
          all: async (statements) => (await all(statements)).map((rows) => (Array.isArray(rows) ? rows : [])),
          commitWith: async (statements) => {
            progress.committing = true
            // The first that fails is the last that is run.
            await all([...statements, ['COMMIT', []]])
            committed = true
          },
        })
        progress.committing = true
        if (!committed) await this.#run(connection, 'COMMIT')
        return result
      } catch (error) {
        // A connection that may not roll back is not given to anybody else.
        await this.#run(connection, 'ROLLBACK').catch(() => connection.destroy())
        throw error
      }
    })
  }

  /** Unix milliseconds by the server's clock. */
  async now(): Promise<number> {
    const [row] = await this.query<{ now: number }>('SELECT CAST(UNIX_TIMESTAMP(NOW(3)) * 1000 AS UNSIGNED) AS now')
    return Number(row?.now)
  }

  /** Brings the schema up to date by `directory`'s files `0001_name.sql`. Throws `SchemaTooNew`, `ServerUnsupported`. */
  migrate(directory: string): Promise<void> {
    return this.#connected(async (connection) => {
      await requireServer(connection)
      await migrate(connection, directory)
    })
  }

  async #connected<T>(use: (connection: mysql.PoolConnection) => Promise<T>): Promise<T> {
    const connection = await this.#pool.getConnection().catch((error: unknown) => {
      throw classified(error)
    })
    try {
      return await use(connection)
    } finally {
      connection.release()
    }
  }

  async #run(connection: mysql.PoolConnection, sql: string, values: SqlValue[] = []): Promise<unknown> {
    try {
      const [result] = await connection.query({ sql, values, timeout: this.#timeoutMs })
      return result
    } catch (error) {
      const known = classified(error)
      // The answer may still come, to whoever asks next on this connection.
      if (known instanceof ConnectionLost) connection.destroy()
      throw known
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#pool.end()
  }
}

function classified(error: unknown): unknown {
  const { code, errno, fatal, message } = error as { code?: string; errno?: number; fatal?: boolean; message: string }
  const denied = errno === 1044 || errno === 1045 || errno === 1049
  const lost = refused.has(errno) || unreachable.test(code ?? '') || (fatal === true && !denied)
  return lost ? new ConnectionLost('Unavailable', `database: ${message}`, { cause: error }) : error
}

const contended = (cause: Error) => new Transient('Conflict', `database: ${cause.message}`, { cause })
