import { ShoalError } from '../api/errors.ts'
import type { MachineState } from '../api/fleetApi.ts'
import { type MachinePage, type MachineRecord, machinesQuery } from '../api/machinesApi.ts'
import { mirrorNamespace } from '../api/regionApi.ts'
import { type Access, authorize } from '../runtime/access.ts'
import type { Server } from '../runtime/server.ts'
import type { Database } from '../runtime/sql.ts'
import { nowMs } from './machines.ts'

export interface MachinesRouteOptions extends Access {
  region: string
  database: Database
  unreachableMs: number
}

interface Row {
  name: string
  state: MachineState
  revision: number
  running: string | null
  reason: string | null
  message: string | null
  fetchMs: number | null
  lastSeenMs: number | null
  granted: number
  nowMs: number
}

/** GET /v1/machines (api/machinesApi.ts). Any replica. */
export function registerMachinesRoute(server: Server, options: MachinesRouteOptions): void {
  const { region, database, unreachableMs } = options
  server.get('/v1/machines', async (request): Promise<MachinePage> => {
    const query = machinesQuery.parse(request.query)
    const { namespace, goal, state, silent, limit } = query
    await authorize(options, request, {
      ...{ verb: 'get', resource: 'regionalgoalstates', namespace: mirrorNamespace(region) },
      name: `${namespace}.${goal}`,
    })
    const rows = await database.query<Row>(
      // Indexes: PRIMARY of machine_goal and machine.
      `SELECT mg.machine AS name, mg.state, mg.revision, mg.running, mg.reason, mg.message, mg.fetch_ms AS fetchMs,
         m.last_seen_ms AS lastSeenMs, ${nowMs} AS nowMs, mg.grant_id IS NOT NULL AS granted
       FROM machine_goal mg JOIN machine m ON m.name = mg.machine
       WHERE mg.namespace = ? AND mg.name = ? AND mg.machine > ?
         ${state === undefined ? '' : 'AND mg.state = ?'}
         ${silent ? `AND m.last_seen_ms <= ${nowMs} - ?` : ''}
       ORDER BY mg.machine LIMIT ?`,
      [
        ...[namespace, goal, query.continue ?? ''],
        ...(state === undefined ? [] : [state]),
        ...(silent ? [unreachableMs] : []),
        limit + 1,
      ],
    )
    if (rows.length === 0 && query.continue === undefined) await requireGoal(database, namespace, goal)
    const items = rows.slice(0, limit).map((row) => described(row, unreachableMs))
    return {
      now: new Date(rows[0]?.nowMs ?? (await database.now())).toISOString(),
      items,
      ...(rows.length > limit && { continue: items.at(-1)?.name }),
    }
  })
}

async function requireGoal(database: Database, namespace: string, name: string): Promise<void> {
  const [row] = await database.query('SELECT 1 FROM goal WHERE namespace = ? AND name = ?', [namespace, name])
  if (!row) throw new ShoalError('NotFound', `this region was never told of GoalState ${namespace}/${name}`)
}

function described(row: Row, unreachableMs: number): MachineRecord {
  const { name, state, revision, running, reason, message, fetchMs, lastSeenMs, granted } = row
  return {
    ...{ name, state, revision },
    ...(running !== null && { running }),
    ...(lastSeenMs !== null && { lastSeen: new Date(lastSeenMs).toISOString() }),
    silent: lastSeenMs === null || row.nowMs - lastSeenMs >= unreachableMs,
    granted: granted > 0,
    ...(fetchMs !== null && { fetchSeconds: fetchMs / 1000 }),
    ...(reason !== null && { reason }),
    ...(message !== null && { message }),
  }
}
