import { Transient } from '../api/errors.ts'
import type { Database } from '../runtime/sql.ts'
import type { LogPlace } from './log.ts'

/** Text of an attempt without a gap: one gzip member of the job's object. */
export interface KeptPage {
  attempt: number
  offset: number
  textBytes: number
  /** In the object. */
  firstByte: number
  gzipBytes: number
}

export interface OverJob {
  id: number
  namespace: string
  name: string
}

/**
 * Jobs whose build is over and whose log is still in the queue, first come first, from an id on; at most 500.
 *
 * Index: PRIMARY of job_log, one look for each job that has a log (1,000 jobs of 600 parts: 5 ms; 180 ms as long as the
 * server's statistics are wrong); PRIMARY of outcome and job.
 */
export function overWithLog(database: Database, afterId: number): Promise<OverJob[]> {
  return database.query<OverJob & Record<string, unknown>>(
    `SELECT job.id, job.namespace, job.name FROM (SELECT job_id FROM job_log WHERE job_id > ? GROUP BY job_id) logged
     STRAIGHT_JOIN outcome ON outcome.job_id = logged.job_id STRAIGHT_JOIN job ON job.id = logged.job_id
     ORDER BY job.id LIMIT 500`,
    [afterId],
  )
}

/** How many parts each attempt's log has, and how many bytes; the last attempt first. Index: PRIMARY of job_log. */
export function loggedAttempts(
  database: Database,
  jobId: number,
): Promise<{ attempt: number; parts: number; bytes: number }[]> {
  return database.query(
    `SELECT attempt, COUNT(*) AS parts, SUM(LENGTH(text)) AS bytes FROM job_log
     WHERE job_id = ? GROUP BY attempt ORDER BY attempt DESC`,
    [jobId],
  )
}

/**
 * Has the log of a job that is over read from an object from now on; `parts`: how many the queue had of it. False when
 * another object was taken before: then nothing changed. May be repeated. Throws Transient `Conflict`.
 */
export function keepLog(
  database: Database,
  jobId: number,
  kept: { key: string; pages: KeptPage[]; parts: number },
): Promise<boolean> {
  return database.transaction(
    async (sql) => {
      // Index: PRIMARY of both.
      const { affectedRows } = await sql.execute('DELETE FROM job_log WHERE job_id = ?', [jobId])
      if (affectedRows === 0) {
        const query = 'SELECT object_key AS `key` FROM kept_log WHERE job_id = ? LIMIT 1'
        const [before] = await sql.query<{ key: string }>(query, [jobId])
        return before?.key === kept.key
      }
      if (affectedRows !== kept.parts)
        throw new Transient('Conflict', `the log of job ${jobId} changed while it was moved`)
      await sql.execute(
        `INSERT INTO kept_log (job_id, attempt, offset_bytes, text_bytes, object_key, first_byte, gzip_bytes) VALUES ?`,
        [
          kept.pages.map(({ attempt, offset, textBytes, firstByte, gzipBytes }) => [
            ...[jobId, attempt, offset, textBytes],
            ...[kept.key, firstByte, gzipBytes],
          ]),
        ],
      )
      return true
    },
    { idempotent: true },
  )
}

/** Drops the log of a job. */
export async function dropLog(database: Database, jobId: number): Promise<void> {
  await database.execute('DELETE FROM job_log WHERE job_id = ?', [jobId])
}

/** The page that has this byte of the log, or the next one. Index: PRIMARY of kept_log. */
export async function keptPage(
  database: Database,
  { jobId, attempt, offset }: LogPlace,
): Promise<(KeptPage & { key: string }) | undefined> {
  const [page] = await database.query<KeptPage & { key: string }>(
    `SELECT attempt, offset_bytes AS \`offset\`, text_bytes AS textBytes, object_key AS \`key\`, first_byte AS firstByte,
       gzip_bytes AS gzipBytes FROM kept_log
     WHERE job_id = ? AND attempt = ? AND offset_bytes + text_bytes > ? ORDER BY offset_bytes LIMIT 1`,
    [jobId, attempt, offset],
  )
  return page
}

/** The objects that hold these jobs' logs. Index: PRIMARY of kept_log. */
export async function keptObjects(database: Database, jobIds: number[]): Promise<string[]> {
  if (jobIds.length === 0) return []
  const rows = await database.query<{ key: string }>(
    'SELECT DISTINCT object_key AS `key` FROM kept_log WHERE job_id IN (?)',
    [jobIds],
  )
  return rows.map(({ key }) => key)
}
