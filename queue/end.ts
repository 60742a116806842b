import type { SqlValue, Statement, Transaction } from '../runtime/sql.ts'
import { type LockedJob, nowMs } from './job.ts'
import { release } from './slots.ts'

export interface End {
  phase: 'Failed' | 'Cancelled'
  code: string
  message: string
}

/**
 * What came of jobs that are locked: their leases, while these are still there, say who, when and for what. By default
 * it is their workers' own finish. Index: by_job of slot, PRIMARY of worker, job and outcome.
 */
export function outcomesRecorded(
  jobIds: number[],
  { phase, code, message }: End | { phase: 'Replicating'; code?: undefined; message?: undefined },
  { byWorker = true } = {},
): Statement {
  const finished = phase === 'Replicating' ? 'NULL' : nowMs
  const said: SqlValue[] = [phase, code ?? null, message?.slice(0, 4096) ?? null]
  const leased = 'slot STRAIGHT_JOIN worker ON worker.id = slot.worker WHERE slot.job_id'
  const any = 'job LEFT JOIN slot ON slot.job_id = job.id LEFT JOIN worker ON worker.id = slot.worker WHERE job.id'
  return [
    `INSERT INTO outcome (job_id, phase, code, message, worker, target, started_at_ms, token, built_at_ms, finished_at_ms,
       updated_at_ms)
     SELECT ${byWorker ? 'slot.job_id' : 'job.id'}, ?, ?, ?, worker.name, IF(worker.id IS NULL, NULL, slot.target),
       NULLIF(slot.claimed_at_ms, 0), ${byWorker ? `slot.token, ${nowMs}` : 'NULL, NULL'}, ${finished}, ${nowMs}
     FROM ${byWorker ? leased : any} IN (?)`,
    [...said, jobIds],
  ]
}

/** Ends a job that is locked and not finished: its slot, and with it its lease, is free; it is in no line. */
export async function end(sql: Transaction, job: LockedJob, how: End): Promise<void> {
  await sql.execute(...outcomesRecorded([job.id], how, { byWorker: false }))
  await release(sql, job)
}
