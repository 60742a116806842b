import { Buffer } from 'node:buffer'
import { type JobClaim, keptLogBytes } from '../api/workerApi.ts'
import type { Database } from '../runtime/sql.ts'
import { refusal, requireLease } from './lease.ts'

/** A byte of an attempt's log. Attempts are counted by claims: the counter of the token. */
export interface LogPlace {
  jobId: number
  attempt: number
  offset: number
}

/** Whole characters. What lies between two parts was left out. */
export interface LogPart {
  offset: number
  text: Buffer
}

/** About so much is read at once. */
const readBytes = 512 << 10

/**
 * Keeps a part of a build's output, which comes in order; the same part again replaces it. Of what is longer than head
 * and tail, the middle is dropped. Throws Fenced.
 */
export async function appendLog(database: Database, claim: JobClaim, offset: number, text: string): Promise<void> {
  const attempt = Number.parseInt(claim.token, 10)
  if (Number.isNaN(attempt)) throw refusal(claim)
  const place = [claim.jobId, attempt, offset]
  // The lease is locked, so that nothing comes after its end. `last` is a table of its own, since MySQL doesn't read from
  // the table that it writes to. Index: by_job of slot, PRIMARY of job_log.
  const { affectedRows } = await database.execute(
    `INSERT INTO job_log (job_id, attempt, offset_bytes, text)
     SELECT job_id, ?, ?, ? FROM slot WHERE job_id = ? AND token = ? AND ? >= COALESCE(
       (SELECT end_bytes FROM (SELECT offset_bytes + LENGTH(text) AS end_bytes FROM job_log
        WHERE job_id = ? AND attempt = ? AND offset_bytes <> ? ORDER BY offset_bytes DESC LIMIT 1) last), 0)
     LOCK IN SHARE MODE
     ON DUPLICATE KEY UPDATE text = VALUES(text)`,
    [attempt, offset, Buffer.from(text), claim.jobId, claim.token, offset, ...place],
  )
  // Refused, or out of order: then it came late, and was repeated meanwhile.
  if (affectedRows === 0) await requireLease(database, claim)
  const { head, tail } = keptLogBytes
  if (offset < head + tail) return
  await database.execute(
    'DELETE FROM job_log WHERE job_id = ? AND attempt = ? AND offset_bytes >= ? AND offset_bytes < ?',
    [claim.jobId, attempt, head, offset - tail],
  )
}

/** The next parts of an attempt's log that the queue has, from a byte on where one begins. Index: PRIMARY of job_log. */
export function logParts(database: Database, { jobId, attempt, offset }: LogPlace): Promise<LogPart[]> {
  const from = [jobId, attempt, offset]
  return database.query<LogPart & Record<string, unknown>>(
    `SELECT offset_bytes AS \`offset\`, text FROM job_log
     WHERE job_id = ? AND attempt = ? AND offset_bytes >= ? AND offset_bytes < ? +
       (SELECT MIN(offset_bytes) FROM job_log WHERE job_id = ? AND attempt = ? AND offset_bytes >= ?)
     ORDER BY offset_bytes LIMIT 500`,
    [...from, readBytes, ...from],
  )
}

/** What stands where bytes were left out. */
export const leftOut = (bytes: number) => `\n… ${bytes} bytes left out …\n`
