/**
 * queue/: the build queue in SQL. A job is claimed by one worker at a time, first in, first out within a priority, and
 * never built to success twice.
 *
 *   enqueue ─▶ ready ──claim──▶ leased ──finish──▶ Replicating ─▶ Succeeded
 *      │         ▲ ▲              │ │                  (or Failed, Cancelled)
 *      └▶ blocked┘ └──requeue─────┘ └─ hand-back: to its place, not an attempt
 *
 * Words: a *slot* is one of a pipeline's concurrency.max; a job that is ready or runs has one. A *lease* is a worker's
 * right to a job, and is in the job's slot; its *token* grows with each claim of the job and has a random part. Whatever
 * a worker says of a job carries the token and is refused (Fenced) when it is not the latest. Every replica of the hub
 * may call everything here at once: what is true is in the rows.
 */
import type { BuildJobPhase } from '../api/buildJob.ts'
import type { ErrorCode } from '../api/errors.ts'
import type { Row, Sql, Statement } from '../runtime/sql.ts'

/** A job, with what its lease says while it runs. Times are Unix milliseconds of the server's clock. */
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
  /** How many workers were lost with it. */
  lostWorkers: number
  handedBack: number
  /** How often it was claimed: the counter of the last token. */
  claims: number
  /** How often it was claimed and not handed back. */
  attempt: number
  worker: string | null
  /** Of its lease; null without one. */
  token: string | null
  /** Of the finish that was accepted. */
  finishedToken: string | null
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

/** Of an update, for `changesAfter`: two changes of a row within a millisecond are told apart. */
export const changed = `updated_at_ms = GREATEST(${nowMs}, updated_at_ms + 1)`

const asked = `job.id, job.namespace, job.pipeline, commit_id AS \`commit\`, job.name, ref, -job.priority AS priority,
  job.created_at_ms AS createdAtMs, cancel, lost_workers AS lostWorkers, handed_back AS handedBack, facts`

/** Of a job in line, the slot and the outcome say nothing. */
const inLine = `${asked}, 'Queued' AS phase, NULL AS token, NULL AS finishedToken`

const state = `${asked}, IF(slot.worker > 0, 'Running', COALESCE(phase, 'Queued')) AS phase,
  NULLIF(slot.token, '') AS token, outcome.token AS finishedToken`

const whole = `${state}, COALESCE(NULLIF(slot.claimed_at_ms, 0), started_at_ms) AS startedAtMs,
  finished_at_ms AS finishedAtMs, code, message, replicated,
  GREATEST(job.updated_at_ms, COALESCE(outcome.updated_at_ms, 0)) AS updatedAtMs,
  COALESCE(worker.name, outcome.worker) AS worker, target.value AS target`

/** Index: by_job of slot, PRIMARY of outcome. */
const withState = 'job LEFT JOIN slot ON slot.job_id = job.id LEFT JOIN outcome ON outcome.job_id = job.id'

type Told = 'startedAtMs' | 'finishedAtMs' | 'code' | 'message' | 'replicated' | 'updatedAtMs' | 'worker' | 'target'

/**
 * What is read of a job to change it, and locked with it: not the rows of worker and target, which jobs share, and nothing
 * that is only told (a finish of 25 jobs then takes a quarter less).
 */
export type LockedJob = Omit<Job, Told>

type Read<T extends LockedJob> = Omit<T, 'cancel' | 'claims' | 'attempt'> & { cancel: number }

function fromRow<T extends LockedJob>(row: Read<T>) {
  const { lostWorkers, handedBack, cancel } = row
  const token = row.token ?? row.finishedToken
  const claims = token === null ? lostWorkers + handedBack : Number.parseInt(token, 10)
  return { ...row, cancel: cancel === 1, claims, attempt: claims - handedBack }
}

/** Locks jobs, their slots and outcomes, in the order of their ids, until the transaction ends; for `jobsOf`. */
export const jobsLocked = (ids: number[]): Statement => [
  `SELECT ${state} FROM ${withState} WHERE job.id IN (?) ORDER BY job.id FOR UPDATE`,
  [ids],
]

/** Locks the first jobs in line that nobody else has locked, in order, in `ready` and in `job`; for `jobsOf`. */
export const readyLocked = (limit: number): Statement => [
  // Index: PRIMARY of ready, whose order it is, so that LIMIT bounds what is locked; PRIMARY of job.
  `SELECT ${inLine} FROM ready FORCE INDEX (PRIMARY) STRAIGHT_JOIN job ON job.id = ready.job_id
   ORDER BY ready.priority, ready.created_at_ms, ready.job_id LIMIT ? FOR UPDATE SKIP LOCKED`,
  [limit],
]

/** What `jobsLocked` or `readyLocked` was answered. */
export const jobsOf = (rows: Row[] = []): LockedJob[] =>
  (rows as unknown as Read<LockedJob>[]).map((row) => fromRow<LockedJob>(row))

/** A job, its slot and its outcome, locked until the transaction ends. */
export async function lockJob(sql: Sql, id: number): Promise<LockedJob | undefined> {
  return (await lockJobs(sql, [id]))[0]
}

/** As `lockJob`, of several. */
export async function lockJobs(sql: Sql, ids: number[]): Promise<LockedJob[]> {
  return ids.length === 0 ? [] : jobsOf(await sql.query(...jobsLocked(ids)))
}

/** Jobs by any condition on an index of `job`. */
export async function selectJobs(sql: Sql, where: string, values: (string | number | number[])[]): Promise<Job[]> {
  // Index: PRIMARY of worker and target.
  const rows = await sql.query<Read<Job>>(
    `SELECT ${whole} FROM ${withState} LEFT JOIN worker ON worker.id = slot.worker
       LEFT JOIN target ON target.digest = COALESCE(outcome.target, slot.target)
     WHERE ${where}`,
    values,
  )
  return rows.map((row) => fromRow<Job>(row))
}

const types = {
  job_id: 'BIGINT',
  worker_id: 'BIGINT',
  priority: 'INT',
  created_at_ms: 'BIGINT',
  poll_id: 'BIGINT',
  namespace: 'VARCHAR(63) CHARACTER SET ascii COLLATE ascii_bin',
  pipeline: 'VARCHAR(253) CHARACTER SET ascii COLLATE ascii_bin',
  worker: 'VARCHAR(191) CHARACTER SET ascii COLLATE ascii_bin',
  token: 'VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin',
  digest: 'CHAR(32) CHARACTER SET ascii',
}

/**
 * Rows to join with, named `given`, and their value for the statement: each is looked up by its key, and one statement
 * serves any number. A long OR is evaluated anew for every row, CASE too; `(a, b) IN (…)` has MariaDB read, and lock, all.
 * An update keeps its new values in a temporary table first, on the disk when one of them is JSON or text: give none.
 */
export function given<Column extends keyof typeof types>(
  columns: Column[],
  rows: Record<Column, string | number | null>[],
): { table: string; value: string } {
  const list = columns.map((name, i) => `${name} ${types[name]} PATH '$[${i}]'`).join(', ')
  return {
    table: `JSON_TABLE(?, '$[*]' COLUMNS (${list})) AS given`,
    value: JSON.stringify(rows.map((row) => columns.map((name) => row[name]))),
  }
}
