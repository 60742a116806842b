import type { Transaction } from '../runtime/sql.ts'
import { type Job, nowMs } from './job.ts'
import { release } from './slots.ts'

/** Ends a job that is locked and not finished: its slot, and with it its lease, is free; it is in no line. */
export async function end(
  sql: Transaction,
  job: Job,
  phase: 'Failed' | 'Cancelled',
  why: { code?: string; message?: string } = {},
): Promise<void> {
  await sql.execute(
    `UPDATE job SET phase = ?, code = ?, message = ?, worker = ?, started_at_ms = ?, target = ?,
       finished_at_ms = ${nowMs}, updated_at_ms = ${nowMs} WHERE id = ?`,
    [phase, why.code ?? null, why.message ?? null, job.worker, job.startedAtMs, job.target, job.id],
  )
  await release(sql, job)
}
