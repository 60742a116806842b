import type { Clock } from '../runtime/clock.ts'
import type { Logger } from '../runtime/log.ts'
import { rounds } from '../runtime/rounds.ts'
import type { Database } from '../runtime/sql.ts'
import { nowMs } from './machines.ts'

const forgetMs = 24 * 3_600_000
/** How long this server must have been up: who is there has polled by then. */
const upMs = 600_000
const everyMs = 60_000
const maxBatch = 1000

export interface RosterOptions {
  database: Database
  clock: Clock
  log: Logger
}

/** Takes machines that were not heard for a day off the roster. They come back by polling; an enrolled key stays. */
export class Roster {
  readonly #options: RosterOptions

  constructor(options: RosterOptions) {
    this.#options = options
  }

  async run(signal: AbortSignal): Promise<void> {
    const { clock, log } = this.#options
    await clock.sleep(upMs, signal).catch(() => undefined)
    const failed = (err: unknown) => log.info({ err }, 'the roster was not looked through')
    await rounds(() => this.forgetSilent(), { everyMs, clock, signal, failed })
  }

  /** The names of those it forgot. Replicas may do it at once. Indexes: PRIMARY, by_machine. */
  async forgetSilent(): Promise<string[]> {
    const { database, log } = this.#options
    const names = await database.transaction(async (sql) => {
      const rows = await sql.query<{ name: string }>(
        `SELECT name FROM machine WHERE last_seen_ms <= ${nowMs} - ? ORDER BY name LIMIT ? FOR UPDATE`,
        [forgetMs, maxBatch],
      )
      const silent = rows.map(({ name }) => name)
      if (silent.length === 0) return silent
      await sql.execute('DELETE FROM machine_goal WHERE machine IN (?)', [silent])
      await sql.execute('DELETE FROM machine WHERE name IN (?) AND public_key IS NULL', [silent])
      await sql.execute('UPDATE machine SET last_seen_ms = NULL WHERE name IN (?)', [silent])
      return silent
    })
    if (names.length > 0) log.info({ names: names.slice(0, 10), count: names.length }, 'machines off the roster')
    return names
  }
}
