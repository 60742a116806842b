/**
 * fleet/: what a region's machines talk to. It knows the machines (the roster) and the goals the hub has signed for the
 * region; it tells each machine which goals select it, grants activations within target and budget, and is the tracker
 * of the region's swarms. All of it is rows of the region's own database, so any replica answers any machine.
 */
import type { Database, Sql } from '../runtime/sql.ts'

/** The server's clock, for statements. */
export const nowMs = 'CAST(UNIX_TIMESTAMP(NOW(3)) * 1000 AS SIGNED)'

/** Takes what a machine was granted out of a row of machine_goal. */
export const noGrant = `grant_id = NULL, grant_revision = NULL, grant_template = NULL, grant_begin_by_ms = NULL,
  grant_ends_at_ms = NULL, grant_begun = FALSE`

export interface Machine {
  name: string
  labels: Record<string, string>
  namespaces: string[]
}

export interface MachineRow {
  name: string
  labels: string
  namespaces: string
}

const fromRow = ({ name, labels, namespaces }: MachineRow): Machine => ({
  name,
  labels: JSON.parse(labels) as Record<string, string>,
  namespaces: JSON.parse(namespaces) as string[],
})

/** Machines that were heard of. */
export async function heardMachines(sql: Sql): Promise<Machine[]> {
  const rows = await sql.query<MachineRow>(
    'SELECT name, labels, namespaces FROM machine WHERE last_seen_ms IS NOT NULL',
  )
  return rows.map(fromRow)
}

/** The public key a machine enrolled with. Index: PRIMARY. */
export async function publicKeyOf(database: Database, machine: string): Promise<string | undefined> {
  const [row] = await database.query<{ publicKey: string | null }>(
    'SELECT public_key AS publicKey FROM machine WHERE name = ?',
    [machine],
  )
  return row?.publicKey ?? undefined
}

/** Gives a machine its place in the region, by its public key; enrolling it again replaces the key. */
export async function enrolMachine(
  database: Database,
  machine: { name: string; publicKey: string; labels: Record<string, string>; namespaces: string[] },
): Promise<void> {
  await database.execute(
    `INSERT INTO machine (name, public_key, labels, namespaces) VALUES (?, ?, ?, ?)
     ON DUPLICATE KEY UPDATE public_key = VALUES(public_key)`,
    [machine.name, machine.publicKey, JSON.stringify(machine.labels), JSON.stringify(machine.namespaces)],
  )
}
