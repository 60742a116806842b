import { type BuildJobPhase, finalPhases } from '../api/buildJob.ts'
import type { Database } from '../runtime/sql.ts'
import { findJobs } from './control.ts'
import { type Job, lockJobs, selectJobs } from './job.ts'

export interface HistoryQuery {
  namespace: string
  pipeline?: string | undefined
  phase?: BuildJobPhase | undefined
  /** Jobs queued before this one. */
  beforeId?: number | undefined
  limit: number
}

export interface HistoryPage {
  jobs: Job[]
  /** `beforeId` of the next page; undefined at the end. */
  nextId: number | undefined
}

/** Rows looked at for one page, when a phase is asked for that many have. */
const windowRows = 5000

/** A namespace's jobs, newest first. A page may be short, or empty, before the end. */
export async function listJobs(database: Database, query: HistoryQuery): Promise<HistoryPage> {
  const { phase, limit } = query
  const isFew = phase !== undefined && !finalPhases.includes(phase)
  const size = phase === undefined || isFew ? limit + 1 : windowRows
  const rows = isFew ? await unfinishedIn(database, phase, query, size) : await newest(database, query, size)
  const found = phase === undefined || isFew ? rows : rows.filter((row) => row.phase === phase)
  const ids = found.slice(0, limit).map(({ id }) => id)
  const nextId = found.length > limit ? ids.at(-1) : rows.length < size ? undefined : rows.at(-1)?.id
  const jobs = await findJobs(database, ids)
  return { jobs: jobs.reverse(), nextId }
}

type JobId = { id: number; phase?: BuildJobPhase }

/** Index: by_namespace or by_pipeline, whose order it is; PRIMARY of outcome. */
function newest(database: Database, query: HistoryQuery, size: number): Promise<JobId[]> {
  const index = query.pipeline === undefined ? 'by_namespace' : 'by_pipeline'
  const { where, values } = ofTenant(query)
  return database.query<JobId & Record<string, unknown>>(
    `SELECT id, phase FROM job FORCE INDEX (${index}) LEFT JOIN outcome ON outcome.job_id = job.id
     WHERE ${where} AND id < ? ORDER BY id DESC LIMIT ?`,
    [...values, before(query), size],
  )
}

/** Where those are that will leave their phase; none is in two of them. */
const unfinished: Partial<Record<BuildJobPhase, string[]>> = {
  Running: ['slot WHERE worker > 0 AND'],
  Queued: ['slot WHERE worker = 0 AND', 'blocked WHERE'],
  Replicating: ["outcome JOIN job ON job.id = job_id WHERE phase = 'Replicating' AND"],
}

/** Index: PRIMARY of slot, blocked and job, by_phase of outcome. */
function unfinishedIn(database: Database, phase: BuildJobPhase, query: HistoryQuery, size: number): Promise<JobId[]> {
  const { where, values } = ofTenant(query)
  const sources = unfinished[phase] ?? []
  return database.query<JobId & Record<string, unknown>>(
    `SELECT id FROM (${sources.map((source) => `SELECT job_id AS id FROM ${source} ${where}`).join(' UNION ALL ')}) few
     WHERE id < ? ORDER BY id DESC LIMIT ?`,
    [...sources.flatMap(() => values), before(query), size],
  )
}

const ofTenant = ({ namespace, pipeline }: HistoryQuery) =>
  pipeline === undefined
    ? { where: 'namespace = ?', values: [namespace] }
    : { where: 'namespace = ? AND pipeline = ?', values: [namespace, pipeline] }

const before = ({ beforeId }: HistoryQuery) => beforeId ?? Number.MAX_SAFE_INTEGER

/** All jobs that are not over. Index: of slot and blocked all; by_phase of outcome, PRIMARY of job. */
export function unfinishedJobs(database: Database): Promise<Pick<Job, 'namespace' | 'name'>[]> {
  return database.query<Pick<Job, 'namespace' | 'name'> & Record<string, unknown>>(
    `SELECT job.namespace, job.name FROM (
       SELECT job_id FROM slot UNION ALL SELECT job_id FROM blocked
       UNION ALL SELECT job_id FROM outcome WHERE phase = 'Replicating'
     ) unfinished JOIN job ON job.id = unfinished.job_id`,
  )
}

/** Jobs in the order they were queued, from an id on. Index: PRIMARY. */
export function jobsAfter(database: Database, afterId: number, limit: number): Promise<Job[]> {
  return selectJobs(database, 'job.id > ? ORDER BY job.id LIMIT ?', [afterId, limit])
}

/** Forgets jobs that are over, with their logs but not the objects of these. How many. */
export function deleteJobs(database: Database, jobIds: number[]): Promise<number> {
  return database.transaction(
    async (sql) => {
      const jobs = await lockJobs(sql, jobIds)
      const ids = jobs.filter(({ phase }) => finalPhases.includes(phase)).map(({ id }) => id)
      if (ids.length === 0) return 0
      await sql.all(
        ['job_log', 'kept_log', 'outcome'].map((table) => [`DELETE FROM ${table} WHERE job_id IN (?)`, [ids]]),
      )
      await sql.execute('DELETE FROM job WHERE id IN (?)', [ids])
      return ids.length
    },
    { idempotent: true },
  )
}
