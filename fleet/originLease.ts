import type { Database } from '../runtime/sql.ts'
import { nowMs } from './machines.ts'

export interface LeaseRequest {
  infoHash: string
  machine: string
  /** It lacks pieces, and stays. */
  wants: boolean
  /** Read from the bucket since its last announce. */
  readBytes: number
  leaseMs: number
}

/**
 * Permission to read an artifact from the bucket: an expiring row, so that one machine of the region has it at a time.
 * Its holder renews it with each announce while it lacks pieces. Index: PRIMARY.
 */
export async function originLease(database: Database, request: LeaseRequest): Promise<boolean> {
  const { infoHash, machine, wants, readBytes, leaseMs } = request
  return database.transaction(async (sql) => {
    await sql.execute('INSERT IGNORE INTO origin_lease (info_hash, machine, expires_at_ms) VALUES (?, NULL, 0)', [
      infoHash,
    ])
    const [row] = await sql.query<{ machine: string | null; free: number }>(
      `SELECT machine, machine IS NULL OR expires_at_ms <= ${nowMs} AS free FROM origin_lease WHERE info_hash = ? FOR UPDATE`,
      [infoHash],
    )
    const own = row?.machine === machine
    const held = wants && (own || row?.free === 1)
    if (readBytes > 0)
      await sql.execute('UPDATE origin_lease SET read_bytes = read_bytes + ? WHERE info_hash = ?', [
        readBytes,
        infoHash,
      ])
    if (held)
      await sql.execute(`UPDATE origin_lease SET machine = ?, expires_at_ms = ${nowMs} + ? WHERE info_hash = ?`, [
        machine,
        leaseMs,
        infoHash,
      ])
    else if (own) await sql.execute('UPDATE origin_lease SET machine = NULL WHERE info_hash = ?', [infoHash])
    return held
  })
}
