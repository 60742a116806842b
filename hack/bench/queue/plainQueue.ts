import { createConnection, createPool, type Pool, type PoolConnection } from 'mysql2/promise'
import { until } from '../../parts/process.ts'

/**
 * The queue one would write first: a table with an index on state and time. `for update`: the oldest job is locked and
 * taken, as the server's default isolation has it. `skip locked`: passing over those that others are taking, in READ
 * COMMITTED, which is the best there is of one job per claim.
 */
export type PlainQueue = 'for update' | 'skip locked'

export async function plainQueue(
  url: string,
  { kind, waiting, connections }: { kind: PlainQueue; waiting: number; connections: number },
): Promise<Pool & AsyncDisposable> {
  const pool = createPool({ uri: url, connectionLimit: connections })
  const opened = new Set<PoolConnection>()
  pool.pool.on('connection', (connection) => {
    opened.add(connection as unknown as PoolConnection)
    if (kind === 'skip locked') connection.query('SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED', () => {})
  })
  await pool.query(
    `CREATE TABLE job (id BIGINT AUTO_INCREMENT PRIMARY KEY, state TINYINT NOT NULL, created_at DATETIME(3) NOT NULL,
       worker VARCHAR(64), payload VARCHAR(200), KEY (state, created_at, id)) ENGINE=InnoDB`,
  )
  const payload = 'x'.repeat(200)
  for (let n = 0; n < waiting; n += 5000) {
    const rows = Array.from({ length: Math.min(5000, waiting - n) }, () => [0, new Date(), payload])
    await pool.query('INSERT INTO job (state, created_at, payload) VALUES ?', [rows])
  }
  // 200 claims that lock each other out would be waited for for a minute, and the server would go on with them.
  const close = async () => {
    const ids = [...opened].map(({ threadId }) => threadId)
    const administrator = await createConnection(url)
    for (const id of ids) await administrator.query('KILL ?', [id]).catch(() => undefined)
    for (const connection of opened) connection.destroy()
    await until('the server is rid of them', async () => {
      const [rows] = await administrator.query('SELECT 1 FROM information_schema.processlist WHERE id IN (?)', [ids])
      return (rows as unknown[]).length === 0
    })
    await administrator.end()
  }
  return Object.assign(pool, { [Symbol.asyncDispose]: close })
}

/** Claims and finishes one job, again after a deadlock; how long the claim took, in ms, or undefined when there was none. */
export async function claimOnce(pool: Pool, kind: PlainQueue): Promise<number | undefined> {
  const askedMs = performance.now()
  const connection = await pool.getConnection()
  try {
    const id = await rollingBack(connection, () => claim(connection, kind))
    if (id === undefined) return undefined
    const tookMs = performance.now() - askedMs
    await rollingBack(connection, () => connection.query('UPDATE job SET state = 2 WHERE id = ? AND state = 1', [id]))
    return tookMs
  } finally {
    connection.release()
  }
}

async function claim(connection: PoolConnection, kind: PlainQueue): Promise<number | undefined> {
  await connection.beginTransaction()
  const [found] = await connection.query(
    `SELECT id FROM job WHERE state = 0 ORDER BY created_at, id LIMIT 1 FOR UPDATE ${kind === 'skip locked' ? 'SKIP LOCKED' : ''}`,
  )
  const id = (found as { id: number }[])[0]?.id
  if (id !== undefined) await connection.query('UPDATE job SET state = 1, worker = ? WHERE id = ?', ['w', id])
  await connection.commit()
  return id
}

/** Deadlock, lock wait timeout, record changed since last read: the server rolled it back, and it is done again. */
async function rollingBack<T>(connection: PoolConnection, work: () => Promise<T>): Promise<T> {
  for (;;) {
    try {
      return await work()
    } catch (error) {
      if (![1213, 1205, 1020].includes((error as { errno?: number }).errno ?? 0)) throw error
      await connection.rollback()
    }
  }
}
