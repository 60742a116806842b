import type { ReplicaReport, ReplicaWork } from '../api/regionApi.ts'
import type { Database, Sql } from '../runtime/sql.ts'
import type { ExpectedBlob } from './check.ts'
import { descriptorKey } from './key.ts'
import { afterReport, defaultTimings, type Replica, type ReplicaTimings, taskOf } from './replicaState.ts'

export interface ArtifactName {
  namespace: string
  name: string
}

export type NewArtifact = ArtifactName & Omit<ExpectedBlob, 'descriptorKey'>

/** A task for a region, before its source is signed. */
export type DueReplica = Omit<ReplicaWork, 'source'>

type DueRow = NewArtifact & Replica & { nowMs: number }

const nowMs = 'CAST(UNIX_TIMESTAMP(NOW(3)) * 1000 AS SIGNED)'
const replicaColumns = `r.region, r.state, r.copied_bytes AS copiedBytes, r.checked_at_ms AS checkedAtMs,
  r.all_bytes_read_at_ms AS allBytesReadAtMs, r.message, r.attempts, r.next_at_ms AS nextAtMs`
const MAX_DUE = 8

/** Database `replication`: which region has which artifact. Only the hub writes it. */
export class Replicas {
  readonly #database: Database
  readonly #timings: ReplicaTimings

  constructor(database: Database, timings: Partial<ReplicaTimings> = {}) {
    this.#database = database
    this.#timings = { ...defaultTimings, ...timings }
  }

  /**
   * Adds an artifact and its replicas; those that are there stay as they are. The home region's is Replicated from
   * the start, since the hub read it back, and its own region reads it once more.
   */
  async add(artifact: NewArtifact, regions: { home: string; others: string[] }): Promise<void> {
    await this.#database.transaction(async (sql) => {
      await sql.execute(
        `INSERT IGNORE INTO artifacts (namespace, name, blob_key, digest, size_bytes, part_size_bytes, checksum,
           descriptor_digest) VALUES (?, ?, ?, ?, ?, ?, ?, ?)`,
        [
          artifact.namespace,
          artifact.name,
          artifact.key,
          artifact.digest,
          artifact.sizeBytes,
          artifact.partSizeBytes,
          artifact.checksum,
          artifact.descriptorDigest,
        ],
      )
      await this.#insert(sql, artifact, { region: regions.home, state: 'Replicated' })
      for (const region of regions.others) await this.#insert(sql, artifact, { region, state: 'Pending' })
    })
  }

  /** Adds replicas of an artifact that is there already. */
  async addRegions(artifact: ArtifactName, regions: string[]): Promise<void> {
    await this.#database.transaction(async (sql) => {
      for (const region of regions) await this.#insert(sql, artifact, { region, state: 'Pending' })
    })
  }

  /** Index: artifacts.by_name, then replicas' primary key. */
  async of(artifact: ArtifactName): Promise<Replica[]> {
    const rows = await this.#database.query<Replica>(
      `SELECT ${replicaColumns} FROM artifacts a JOIN replicas r ON r.artifact_id = a.id
       WHERE a.namespace = ? AND a.name = ? ORDER BY r.region`,
      [artifact.namespace, artifact.name],
    )
    return rows
  }

  /** Forgets an artifact and its replicas. */
  async remove(artifact: ArtifactName): Promise<void> {
    await this.#database.execute(
      `DELETE r, a FROM artifacts a LEFT JOIN replicas r ON r.artifact_id = a.id WHERE a.namespace = ? AND a.name = ?`,
      [artifact.namespace, artifact.name],
    )
  }

  /**
   * Artifacts with a replica that changed within the last `withinMs`, and when. Callers poll with overlap and skip what
   * they have seen: a transaction may commit later than its time says. Index: replicas.changed.
   */
  async changed(withinMs: number): Promise<(ArtifactName & { changedAtMs: number })[]> {
    const rows = await this.#database.query<ArtifactName & { changedAtMs: number }>(
      `SELECT a.namespace, a.name, MAX(r.changed_at_ms) AS changedAtMs FROM replicas r
         JOIN artifacts a ON a.id = r.artifact_id
       WHERE r.changed_at_ms > ${nowMs} - ? GROUP BY a.id, a.namespace, a.name`,
      [withinMs],
    )
    return rows
  }

  /**
   * What a region has to do now, taken for it for one lease: several replicators of a region share the work without
   * knowing of each other. Index: replicas.due, then primary keys.
   */
  async due(region: { name: string; managed: boolean; home: boolean }): Promise<DueReplica[]> {
    return this.#database.transaction(async (sql) => {
      const ids = await sql.query<{ id: number }>(
        `SELECT artifact_id AS id FROM replicas WHERE region = ? AND next_at_ms <= ${nowMs}
         ORDER BY next_at_ms LIMIT ${MAX_DUE} FOR UPDATE SKIP LOCKED`,
        [region.name],
      )
      if (ids.length === 0) return []
      const these = ids.map(() => '?').join(', ')
      const values = [...ids.map(({ id }) => id), region.name]
      const rows = await sql.query<DueRow>(
        `SELECT a.namespace, a.name, a.blob_key AS \`key\`, a.digest, a.size_bytes AS sizeBytes,
           a.part_size_bytes AS partSizeBytes, a.checksum, a.descriptor_digest AS descriptorDigest,
           ${nowMs} AS nowMs, ${replicaColumns}
         FROM replicas r JOIN artifacts a ON a.id = r.artifact_id WHERE r.artifact_id IN (${these}) AND r.region = ?`,
        values,
      )
      await sql.execute(
        `UPDATE replicas SET next_at_ms = ${nowMs} + ? WHERE artifact_id IN (${these}) AND region = ?`,
        [this.#timings.leaseMs, ...values],
      )
      return rows.map((row) => ({
        namespace: row.namespace,
        name: row.name,
        key: row.key,
        descriptorKey: descriptorKey(row.key),
        sizeBytes: row.sizeBytes,
        partSizeBytes: row.partSizeBytes,
        checksum: row.checksum,
        digest: row.digest,
        descriptorDigest: row.descriptorDigest,
        state: row.state,
        task: taskOf(row, region, { nowMs: row.nowMs, readAllEveryMs: this.#timings.readAllEveryMs }),
      }))
    })
  }

  /** Records what a region says of its own copies. Reports of what isn't there (any more) are dropped. */
  async report(region: string, reports: ReplicaReport[]): Promise<void> {
    for (const report of reports) await this.#database.transaction((sql) => this.#report(sql, region, report))
  }

  /** Has a region look at its copy again, now. */
  async checkNow(artifact: ArtifactName, region: string): Promise<void> {
    await this.#database.execute(
      `UPDATE replicas r JOIN artifacts a ON a.id = r.artifact_id SET r.next_at_ms = ${nowMs}
       WHERE a.namespace = ? AND a.name = ? AND r.region = ?`,
      [artifact.namespace, artifact.name, region],
    )
  }

  /** Notes that a region's replicator asked for work. */
  async contact(region: string): Promise<void> {
    await this.#database.execute(
      `INSERT INTO region_contacts (region, contacted_at_ms) VALUES (?, ${nowMs})
       ON DUPLICATE KEY UPDATE contacted_at_ms = VALUES(contacted_at_ms)`,
      [region],
    )
  }

  /** How long ago each region's replicator asked for work, in ms. */
  async silence(): Promise<Map<string, number>> {
    const rows = await this.#database.query<{ region: string; silentMs: number }>(
      `SELECT region, ${nowMs} - contacted_at_ms AS silentMs FROM region_contacts`,
    )
    return new Map(rows.map((row) => [row.region, Number(row.silentMs)]))
  }

  async #insert(
    sql: Sql,
    artifact: ArtifactName,
    replica: { region: string; state: 'Pending' | 'Replicated' },
  ): Promise<void> {
    const whole = replica.state === 'Replicated'
    await sql.execute(
      `INSERT IGNORE INTO replicas (artifact_id, region, state, copied_bytes, checked_at_ms, next_at_ms, changed_at_ms)
       SELECT id, ?, ?, ${whole ? 'size_bytes' : '0'}, ${whole ? nowMs : 'NULL'}, ${nowMs}, ${nowMs}
       FROM artifacts WHERE namespace = ? AND name = ?`,
      [replica.region, replica.state, artifact.namespace, artifact.name],
    )
  }

  async #report(sql: Sql, region: string, report: ReplicaReport): Promise<void> {
    const rows = await sql.query<Replica & { artifactId: number; nowMs: number }>(
      `SELECT r.artifact_id AS artifactId, ${nowMs} AS nowMs, ${replicaColumns}
       FROM artifacts a JOIN replicas r ON r.artifact_id = a.id
       WHERE a.namespace = ? AND a.name = ? AND r.region = ? FOR UPDATE`,
      [report.namespace, report.name, region],
    )
    const row = rows[0]
    if (!row) return
    const next = afterReport(row, report, { nowMs: row.nowMs, timings: this.#timings, jitter: Math.random() })
    await sql.execute(
      `UPDATE replicas SET state = ?, copied_bytes = ?, checked_at_ms = ?, all_bytes_read_at_ms = ?, message = ?,
         attempts = ?, next_at_ms = ?, changed_at_ms = ? WHERE artifact_id = ? AND region = ?`,
      [
        next.state,
        next.copiedBytes,
        next.checkedAtMs,
        next.allBytesReadAtMs,
        next.message,
        next.attempts,
        next.nextAtMs,
        row.nowMs,
        row.artifactId,
        region,
      ],
    )
  }
}
