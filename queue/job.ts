/**
 * queue/: the build queue in SQL. A job is claimed by one worker at a time, first in, first out within a priority, and
 * never built to success twice.
 *
 *   enqueue ─▶ ready ──claim──▶ leased ──finish──▶ Replicating ─▶ Succeeded
 *      │         ▲ ▲              │ │                  (or Failed, Cancelled)
 *      └▶ blocked┘ └──requeue─────┘ └─ hand-back: to its place, not an attempt
 *
 * Words: a *lease* is a worker's right to a job until a time; its *token* grows with each claim of the job and has a
 * random part. Whatever a worker says of a job carries the token and is refused (Fenced) when it is not the latest.
 * A *slot* is one of a pipeline's concurrency.max. Every replica of the hub may call everything here at once: what is
 * true is in the rows.
 */
import type { BuildJobPhase } from '../api/buildJob.ts'
import type { ErrorCode } from '../api/errors.ts'
import type { Sql } from '../runtime/sql.ts'

/** A row of `job`. Times are Unix milliseconds of the server's clock. */
export interface Job {
  id: number
  namespace: string
  pipeline: string
  commit: string
  /** Of the BuildJob, and of the artifact to be. */
  name: string
  ref: string
  priority: number
  createdAtMs: number
  phase: BuildJobPhase
  cancel: boolean
  /** How often it was claimed; the counter of its tokens. */
  claims: number
  /** How often it was claimed and neither lost nor handed back. */
  attempt: number
  worker: string | null
  startedAtMs: number | null
  finishedAtMs: number | null
  code: ErrorCode | null
  message: string | null
  /** As JSON: what the claim said of regions, and what the upload found of the blob. */
  target: string | null
  facts: string | null
  replicated: string | null
  updatedAtMs: number
}

/** The server's clock, for statements. */
export const nowMs = 'CAST(UNIX_TIMESTAMP(NOW(3)) * 1000 AS SIGNED)'

const columns = `id, namespace, pipeline, commit_id AS \`commit\`, name, ref, -job.priority AS priority,
  job.created_at_ms AS createdAtMs, phase, cancel, claims, GREATEST(claims - lost_workers - handed_back, 0) AS attempt, job.worker,
  started_at_ms AS startedAtMs, finished_at_ms AS finishedAtMs, code, message, target, facts, replicated,
  updated_at_ms AS updatedAtMs`

type JobRow = Omit<Job, 'cancel'> & { cancel: number }
const fromRow = (row: JobRow): Job => ({ ...row, cancel: row.cancel === 1 })

/** One job, locked until the transaction ends. Index: PRIMARY. */
export async function lockJob(sql: Sql, id: number): Promise<Job | undefined> {
  const [row] = await sql.query<JobRow>(`SELECT ${columns} FROM job WHERE id = ? FOR UPDATE`, [id])
  return row && fromRow(row)
}

/** Jobs, locked in the order of their ids until the transaction ends. Index: PRIMARY. */
export async function lockJobs(sql: Sql, ids: number[]): Promise<Job[]> {
  if (ids.length === 0) return []
  const rows = await sql.query<JobRow>(`SELECT ${columns} FROM job WHERE id IN (?) ORDER BY id FOR UPDATE`, [ids])
  return rows.map(fromRow)
}

export interface HeldJob extends Job {
  /** Of its lease; null without one. */
  token: string | null
  /** Of the finish that was accepted. */
  finishedToken: string | null
}

/** Jobs with their leases, locked in the order of their ids until the transaction ends. Index: PRIMARY of both. */
export async function lockHeld(sql: Sql, ids: number[]): Promise<HeldJob[]> {
  if (ids.length === 0) return []
  const rows = await sql.query<JobRow & Pick<HeldJob, 'token' | 'finishedToken'>>(
    `SELECT ${columns}, lease.token AS token, finished_token AS finishedToken
     FROM job LEFT JOIN lease ON lease.job_id = job.id WHERE job.id IN (?) ORDER BY job.id FOR UPDATE`,
    [ids],
  )
  return rows.map((row) => ({ ...row, ...fromRow(row) }))
}

/**
 * The first jobs in line that nobody else has locked, in order; each is locked in `ready` and in `job`.
 *
 * Index: PRIMARY of ready, whose order it is, so that LIMIT bounds what is locked; PRIMARY of job.
 */
export async function lockReady(sql: Sql, limit: number): Promise<Job[]> {
  const rows = await sql.query<JobRow>(
    `SELECT ${columns} FROM ready FORCE INDEX (PRIMARY) STRAIGHT_JOIN job ON job.id = ready.job_id
     ORDER BY ready.priority, ready.created_at_ms, ready.job_id LIMIT ? FOR UPDATE SKIP LOCKED`,
    [limit],
  )
  return rows.map(fromRow)
}

/** Jobs by any condition on an index. */
export async function selectJobs(sql: Sql, where: string, values: (string | number)[]): Promise<Job[]> {
  const rows = await sql.query<JobRow>(`SELECT ${columns} FROM job WHERE ${where}`, values)
  return rows.map(fromRow)
}

/**
 * Rows by their whole keys: `(a = ? AND b = ?) OR (…)`, with the values. Not `(a, b) IN ((…))`: MariaDB reads all rows
 * for that, and locks them.
 */
export function byKeys<Key extends string>(columns: Key[], rows: Record<Key, string | number>[]) {
  const one = `(${columns.map((column) => `${column} = ?`).join(' AND ')})`
  return {
    where: rows.map(() => one).join(' OR '),
    values: rows.flatMap((row) => columns.map((column) => row[column])),
  }
}
