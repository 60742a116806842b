import type { Statement, Transaction } from '../runtime/sql.ts'
import { type Job, nowMs } from './job.ts'
import { release } from './slots.ts'

export interface End {
  phase: 'Failed' | 'Cancelled'
  code: string
  message: string
  /** Of the worker's own finish, where that is what ends the job. */
  finishedToken?: string | null
}

/** The row of a job that ends unbuilt, with what its lease says of who and when. Index: PRIMARY. */
export function endRecorded(job: Job, { phase, code, message, finishedToken = null }: End): Statement {
  const { worker, startedAtMs, target, id } = job
  return [
    `UPDATE job SET phase = ?, code = ?, message = ?, worker = ?, started_at_ms = ?, target = ?, finished_token = ?,
       built_at_ms = ${finishedToken === null ? 'NULL' : nowMs}, finished_at_ms = ${nowMs}, updated_at_ms = ${nowMs}
     WHERE id = ?`,
    [phase, code, message.slice(0, 4096), worker, startedAtMs, target, finishedToken, id],
  ]
}

/** Ends a job that is locked and not finished: its slot, and with it its lease, is free; it is in no line. */
export async function end(sql: Transaction, job: Job, how: End): Promise<void> {
  await sql.execute(...endRecorded(job, how))
  await release(sql, job)
}
