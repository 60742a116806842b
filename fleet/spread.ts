import type { ArtifactSpread } from '../api/regionalGoalState.ts'
import type { Database } from '../runtime/sql.ts'
import type { Reach } from '../swarm/reach.ts'
import type { GoalAt } from './counts.ts'
import { nowMs } from './machines.ts'

/** What a tracker that is gone has written is not shown for longer. */
const shownMs = 60_000
/** Unchanged ones are written again so often, so that they can be told from those. */
const renewMs = 20_000

/** Writes down how far artifacts have come, as far as it is new: for the replica that is tracker. */
export class SpreadNotes {
  readonly #database: Database
  readonly #noted = new Map<string, { reach: string; atMs: number }>()

  constructor(database: Database) {
    this.#database = database
  }

  async note(reaches: Map<string, Reach>, now: number): Promise<void> {
    for (const [infoHash, reach] of reaches) {
      const text = JSON.stringify(reach)
      const before = this.#noted.get(infoHash)
      if (before?.reach === text && now - before.atMs < renewMs) continue
      await this.#database.execute(
        `INSERT INTO artifact_spread (info_hash, reach, seen_at_ms) VALUES (?, ?, ${nowMs})
         ON DUPLICATE KEY UPDATE reach = VALUES(reach), seen_at_ms = VALUES(seen_at_ms)`,
        [infoHash, text],
      )
      this.#noted.set(infoHash, { reach: text, atMs: now })
    }
    const gone = [...this.#noted.keys()].filter((infoHash) => !reaches.has(infoHash))
    for (const infoHash of gone) this.#noted.delete(infoHash)
    if (gone.length > 0)
      await this.#database.execute(`DELETE FROM artifact_spread WHERE seen_at_ms < ${nowMs} - ${shownMs}`, [])
  }
}

/** Index: PRIMARY. */
async function readReach(database: Database, infoHash: string): Promise<Reach | undefined> {
  const [row] = await database.query<{ reach: string | Reach }>(
    `SELECT reach FROM artifact_spread WHERE info_hash = ? AND seen_at_ms > ${nowMs} - ${shownMs}`,
    [infoHash],
  )
  return typeof row?.reach === 'string' ? (JSON.parse(row.reach) as Reach) : row?.reach
}

/** How long the machines took that have the goal's release. Index: PRIMARY. */
async function readDurations(database: Database, goal: GoalAt): Promise<ArtifactSpread['seconds']> {
  const [row] = await database.query<Record<'machines' | 'p50' | 'p90' | 'last', number | null>>(
    `SELECT COUNT(*) AS machines, MIN(IF(place >= total * 0.5, ms, NULL)) AS p50,
       MIN(IF(place >= total * 0.9, ms, NULL)) AS p90, MAX(ms) AS last
     FROM (SELECT fetch_ms AS ms, ROW_NUMBER() OVER (ORDER BY fetch_ms) AS place, COUNT(*) OVER () AS total
       FROM machine_goal WHERE namespace = ? AND name = ? AND template = ? AND fetch_ms IS NOT NULL) AS ordered`,
    [goal.namespace, goal.name, goal.templateHash],
  )
  if (!row?.machines) return undefined
  const seconds = (ms: number | null) => Math.ceil(Number(ms) / 100) / 10
  return { machines: Number(row.machines), p50: seconds(row.p50), p90: seconds(row.p90), last: seconds(row.last) }
}

/** How a goal's release comes to its machines. */
export class SpreadReader {
  readonly #database: Database
  /** By goal, as long as no machine more has the release: 20,000 rows are not sorted twice a second. */
  readonly #durations = new Map<string, { of: string; seconds: ArtifactSpread['seconds'] }>()

  constructor(database: Database) {
    this.#database = database
  }

  async read(goal: GoalAt, o: { infoHash: string; fetched: number }): Promise<ArtifactSpread | undefined> {
    const reach = await readReach(this.#database, o.infoHash)
    const key = `${goal.namespace}/${goal.name}`
    const of = `${goal.templateHash} ${o.fetched}`
    let known = this.#durations.get(key)
    if (known?.of !== of) {
      known = { of, seconds: o.fetched > 0 ? await readDurations(this.#database, goal) : undefined }
      this.#durations.set(key, known)
    }
    if (!reach && !known.seconds) return undefined
    return { ...reach, ...(known.seconds && { seconds: known.seconds }) }
  }
}
