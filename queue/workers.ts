import type { WorkerState } from '../api/workersApi.ts'
import type { Database, Sql, Statement } from '../runtime/sql.ts'
import { nowMs } from './job.ts'

/** A row of `worker`, with what it builds. Times are Unix milliseconds of the server's clock. */
export interface KnownWorker {
  name: string
  class: string
  isolation: string
  draining: boolean
  firstSeenMs: number
  lastSeenMs: number
  /** When this was read, of the same clock. */
  nowMs: number
  job: { namespace: string; name: string; sinceMs: number } | undefined
}

interface Row extends Omit<KnownWorker, 'draining' | 'job'> {
  draining: number
  namespace: string | null
  job: string | null
  sinceMs: number | null
}

/** All that were heard and not forgotten, by class and name. Index: PRIMARY of worker and job, by_poll of slot. */
export async function listWorkers(sql: Sql): Promise<KnownWorker[]> {
  const rows = await sql.query<Row>(
    `SELECT worker.name, worker.class, worker.isolation, worker.draining, worker.first_seen_ms AS firstSeenMs,
       worker.last_seen_ms AS lastSeenMs, ${nowMs} AS nowMs, job.namespace, job.name AS job,
       slot.claimed_at_ms AS sinceMs
     FROM worker LEFT JOIN slot ON slot.worker = worker.id LEFT JOIN job ON job.id = slot.job_id
     ORDER BY worker.class, worker.name, slot.claimed_at_ms`,
  )
  // A job that was handed back may still have its lease for a moment: the latest is what the worker builds.
  const byName = new Map(rows.map((row) => [row.name, fromRow(row)]))
  return [...byName.values()]
}

function fromRow({ namespace, job, sinceMs, draining, ...row }: Row): KnownWorker {
  const held = namespace !== null && job !== null && sinceMs !== null
  return { ...row, draining: draining === 1, job: held ? { namespace, name: job, sinceMs } : undefined }
}

/** Where it stands; one that was not heard for `alarmMs` is silent, whatever it held. */
export function stateOf({ lastSeenMs, nowMs: now, job, draining }: KnownWorker, alarmMs: number): WorkerState {
  if (now - lastSeenMs > alarmMs) return 'silent'
  if (job) return 'busy'
  return draining ? 'draining' : 'idle'
}

/** A worker whose row is locked. */
export interface LockedWorker {
  id: number
  name: string
  draining: number
}

/**
 * Locks these workers' rows (shared) until the transaction ends; each as a LockedWorker. Whoever wants to drain or forget
 * one of them waits, and then sees the lease that was given meanwhile.
 */
export const workersLocked = (names: string[]): Statement => [
  // Index: by_name, in its order.
  'SELECT id, name, draining FROM worker WHERE name IN (?) LOCK IN SHARE MODE',
  [names],
]

/** Lets those that hold no job get none any more; the names of these. */
export const drain = (database: Database, names: string[]): Promise<string[]> =>
  changeIdle(database, names, 'UPDATE worker SET draining = TRUE')

/** Lets them get jobs again. */
export async function undrain(database: Database, names: string[]): Promise<void> {
  if (names.length > 0) await database.execute('UPDATE worker SET draining = FALSE WHERE name IN (?)', [names])
}

/** Removes those that hold no job, since they will not come back; one that does is simply heard anew. Gives their names. */
export const forget = (database: Database, names: string[]): Promise<string[]> =>
  changeIdle(database, names, 'DELETE FROM worker')

/** Of these workers, changes those without a lease, by the statement up to its WHERE; gives their names. */
async function changeIdle(database: Database, names: string[], change: string): Promise<string[]> {
  if (names.length === 0) return []
  return database.transaction(
    async (sql) => {
      const idle = await lockIdle(sql, names)
      if (idle.length > 0) await sql.execute(`${change} WHERE name IN (?)`, [idle])
      return idle
    },
    { idempotent: true },
  )
}

/** A worker says that it stops: its silence is no alarm. The secret shows that it is the one. */
export async function leave(database: Database, worker: string, probeSecret: string): Promise<void> {
  const [row] = await database.query<{ name: string }>('SELECT name FROM worker WHERE name = ? AND probe_secret = ?', [
    worker,
    probeSecret,
  ])
  if (row) await forget(database, [row.name])
}

/** Those without a lease, locked, in the order of their names. Index: by_name of worker, by_poll of slot. */
async function lockIdle(sql: Sql, names: string[]): Promise<string[]> {
  const known = await sql.query<{ id: number; name: string }>(
    'SELECT id, name FROM worker WHERE name IN (?) ORDER BY name FOR UPDATE',
    [names],
  )
  if (known.length === 0) return []
  // A statement of its own, behind the locks: it sees what claims that were under way have committed.
  const ids = known.map(({ id }) => id)
  const busy = await sql.query<{ worker: number }>('SELECT worker FROM slot WHERE worker IN (?)', [ids])
  const holding = new Set(busy.map(({ worker }) => worker))
  return known.filter(({ id }) => !holding.has(id)).map(({ name }) => name)
}
