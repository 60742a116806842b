import { createHmac, randomBytes, timingSafeEqual } from 'node:crypto'
import type { Clock } from '../runtime/clock.ts'
import type { Logger } from '../runtime/log.ts'
import { rounds } from '../runtime/rounds.ts'
import type { Database } from '../runtime/sql.ts'
import { nowMs } from './machines.ts'

export interface TrackerHolderOptions {
  database: Database
  /** Where the other replicas reach this one. */
  url: string
  clock: Clock
  log: Logger
  /** Default: 5 s. */
  leaseMs?: number
}

interface HolderRow {
  holder: string
  url: string
  heldMs: number
}

/** Elects, by an expiring row, the replica that is tracker. The others forward announces to it. */
export class TrackerHolder {
  readonly #options: TrackerHolderOptions
  readonly #id = randomBytes(16).toString('hex')
  readonly #leaseMs: number
  #row: HolderRow | undefined
  #readAt = 0

  constructor(options: TrackerHolderOptions) {
    this.#options = options
    this.#leaseMs = options.leaseMs ?? 5000
  }

  /** Takes the place when it is free and keeps it, until the signal aborts. */
  async run(signal: AbortSignal): Promise<void> {
    const { clock, log } = this.#options
    const failed = (err: unknown) => log.info({ err }, 'tracker election failed')
    await rounds(() => this.turn(), { everyMs: this.#leaseMs / 4, clock, signal, failed })
    await this.#options.database
      .execute('UPDATE tracker SET expires_at_ms = 0 WHERE id = 1 AND holder = ?', [this.#id])
      .catch(() => undefined)
  }

  async turn(): Promise<void> {
    const { database, url, clock } = this.#options
    const askedAt = clock.monotonic()
    await database.execute(
      `INSERT INTO tracker (id, holder, url, since_ms, expires_at_ms) VALUES (1, ?, ?, ${nowMs}, ${nowMs} + ?)
       ON DUPLICATE KEY UPDATE
         since_ms = IF(holder <> VALUES(holder) AND expires_at_ms <= ${nowMs}, VALUES(since_ms), since_ms),
         url = IF(holder = VALUES(holder) OR expires_at_ms <= ${nowMs}, VALUES(url), url),
         holder = IF(holder = VALUES(holder) OR expires_at_ms <= ${nowMs}, VALUES(holder), holder),
         expires_at_ms = IF(holder = VALUES(holder), VALUES(expires_at_ms), expires_at_ms)`,
      [this.#id, url, this.#leaseMs],
    )
    const [row] = await database.query<HolderRow>(
      `SELECT holder, url, ${nowMs} - since_ms AS heldMs FROM tracker WHERE id = 1`,
    )
    this.#row = row
    this.#readAt = askedAt
  }

  /** This replica is the tracker now, by its own monotonic clock. */
  get isHolder(): boolean {
    return this.#row?.holder === this.#id && this.#options.clock.monotonic() - this.#readAt < this.#leaseMs
  }

  /** How long this replica has been the tracker. */
  get heldMs(): number {
    return this.isHolder ? (this.#row?.heldMs ?? 0) : 0
  }

  /** Where the tracker is, when it isn't here. */
  get holderUrl(): string | undefined {
    return this.isHolder ? undefined : this.#row?.url
  }
}

/** The region's secret, made once by whichever replica comes first. */
export async function regionSecret(database: Database): Promise<Buffer> {
  await database.execute('INSERT IGNORE INTO secret (name, value) VALUES (?, ?)', ['swarm', randomBytes(32)])
  const [row] = await database.query<{ value: Buffer }>("SELECT value FROM secret WHERE name = 'swarm'")
  if (!row) throw new Error('the secret just made is not there')
  return row.value
}

/** The key of an artifact's swarm: whoever knows it may take part. */
export const swarmKey = (secret: Buffer, descriptorDigest: string): Buffer =>
  createHmac('sha256', secret).update(`swarm ${descriptorDigest}`).digest()

/** What replicas of a region prove themselves to each other with. */
export const replicaToken = (secret: Buffer): string => createHmac('sha256', secret).update('replica').digest('hex')

export function isReplicaToken(secret: Buffer, token: string): boolean {
  const [wanted, given] = [Buffer.from(replicaToken(secret)), Buffer.from(token)]
  return given.length === wanted.length && timingSafeEqual(given, wanted)
}
