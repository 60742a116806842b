import type { JobClaim } from '../api/workerApi.ts'
import type { Database } from '../runtime/sql.ts'
import { requireLease } from './lease.ts'

/** A worker keeps head and tail of what is longer; this bounds one that doesn't. */
const maxLogBytes = 16 << 20

/** Keeps a part of a build's output; the same offset again replaces it. Throws Fenced. */
export async function appendLog(database: Database, claim: JobClaim, offset: number, text: string): Promise<void> {
  await requireLease(database, claim)
  if (offset > maxLogBytes) return
  await database.execute('REPLACE INTO job_log (job_id, attempt, offset_bytes, text) VALUES (?, ?, ?, ?)', [
    claim.jobId,
    Number.parseInt(claim.token, 10),
    offset,
    Buffer.from(text),
  ])
}

/** The output of a job's last attempt, as far as it has come. Index: PRIMARY of job_log. */
export async function readLog(database: Database, jobId: number): Promise<string> {
  const rows = await database.query<{ text: Buffer }>(
    `SELECT text FROM job_log WHERE job_id = ? AND attempt = (SELECT MAX(attempt) FROM job_log WHERE job_id = ?)
     ORDER BY offset_bytes`,
    [jobId, jobId],
  )
  return Buffer.concat(rows.map(({ text }) => text)).toString()
}
