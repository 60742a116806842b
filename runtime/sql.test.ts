import { once } from 'node:events'
import { mkdir, writeFile } from 'node:fs/promises'
import { type AddressInfo, connect, createServer, type Socket } from 'node:net'
import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { ShoalError, Transient } from '../api/errors.ts'
import { startDatabase } from '../hack/parts/database.ts'
import { temporaryDir, until } from '../hack/parts/process.ts'
import { statements, unsupported } from './migrations.ts'
import { Database, type Sql } from './sql.ts'

const test = suite('sql')
const server = await startDatabase()
/** A server that others use too is not ours to stop. */
const testOfFaults = server.own ? test : test.skip
const url = await server.createSchema('runtime_sql')
const sql = new Database(url)
await sql.execute(
  'CREATE TABLE account (id INT PRIMARY KEY, balance BIGINT NOT NULL, note JSON, at DATETIME(3)) ENGINE=InnoDB',
)

const code = (expected: string) => (error: unknown) => error instanceof ShoalError && error.code === expected

async function rejects(work: Promise<unknown>, expected: (error: unknown) => boolean): Promise<void> {
  const error = await work.then(
    () => new Error('it did not throw'),
    (thrown: unknown) => thrown,
  )
  assert.ok(expected(error), String(error))
}

test.before.each(async () => {
  await sql.execute('DELETE FROM account')
  await sql.execute('INSERT INTO account (id, balance) VALUES (1, 100), (2, 100)')
})

test('values come back as they went in, and every session is READ COMMITTED, strict and UTC', async () => {
  const at = new Date('2026-03-01T12:00:00.123Z')
  await sql.execute('UPDATE account SET balance = ?, note = ?, at = ? WHERE id IN (?)', [2n ** 40n, '{"a":1}', at, [1]])
  const [row] = await sql.query<{ balance: number; note: string; at: Date }>('SELECT * FROM account WHERE id = ?', [1])
  assert.equal([row?.balance, row?.at], [2 ** 40, at])
  assert.equal(JSON.parse(row?.note ?? ''), { a: 1 }, 'JSON is text on every server')
  const [sum] = await sql.query('SELECT SUM(id) AS ids, COUNT(*) AS n FROM account')
  assert.equal(sum, { ids: 3, n: 2 })
  const bytes = await sql.query<{ b: Uint8Array }>('SELECT ? AS b', [new Uint8Array([0, 39, 92, 255])])
  assert.equal([...(bytes[0]?.b ?? [])], [0, 39, 92, 255])
  const sessions = await Promise.all(
    Array.from({ length: 10 }, () =>
      sql.query<{ zone: string; mode: string }>(
        'SELECT @@session.time_zone AS zone, @@session.sql_mode AS mode, SLEEP(0.05)',
      ),
    ),
  )
  for (const [session] of sessions) {
    assert.is(session?.zone, '+00:00')
    assert.match(session?.mode ?? '', 'STRICT_ALL_TABLES')
  }
  await rejects(sql.execute("INSERT INTO account (id, balance) VALUES ('x', 1)"), (error) => error instanceof Error)
})

test('a reader in a transaction sees what was committed since it began', async () => {
  await sql.transaction(async (tx) => {
    await tx.query('SELECT balance FROM account WHERE id = 1')
    await sql.execute('UPDATE account SET balance = 7 WHERE id = 1')
    const [row] = await tx.query<{ balance: number }>('SELECT balance FROM account WHERE id = 1')
    assert.is(row?.balance, 7)
  })
})

test('what throws is rolled back, and the error arrives', async () => {
  await rejects(
    sql.transaction(async (tx) => {
      await tx.execute('UPDATE account SET balance = 0')
      throw new Error('changed my mind')
    }),
    (error) => (error as Error).message === 'changed my mind',
  )
  const rows = await sql.query<{ balance: number }>('SELECT balance FROM account')
  assert.equal(
    rows.map(({ balance }) => balance),
    [100, 100],
  )
})

test('of two transactions in a deadlock both succeed in the end', async () => {
  const bothHold = Promise.withResolvers<void>()
  let holding = 0
  let runs = 0
  const transfer = (from: number, to: number) =>
    sql.transaction(async (tx) => {
      runs++
      await tx.execute('UPDATE account SET balance = balance - 10 WHERE id = ?', [from])
      if (++holding >= 2) bothHold.resolve()
      await bothHold.promise
      await tx.execute('UPDATE account SET balance = balance + 10 WHERE id = ?', [to])
    })
  await Promise.all([transfer(1, 2), transfer(2, 1)])
  assert.ok(runs > 2, 'there was no deadlock')
  const rows = await sql.query<{ balance: number }>('SELECT balance FROM account')
  assert.equal(
    rows.map(({ balance }) => balance),
    [100, 100],
  )
})

test('a transaction that loses its connection before COMMIT is run again', async () => {
  let runs = 0
  await sql.transaction(async (tx) => {
    const [row] = await tx.query<{ id: number }>('SELECT CONNECTION_ID() AS id')
    await tx.execute('UPDATE account SET balance = balance + 1 WHERE id = 1')
    if (++runs === 1) await sql.execute(`KILL ${row?.id}`)
    await tx.execute('UPDATE account SET balance = balance + 1 WHERE id = 2')
  })
  assert.is(runs, 2)
  const rows = await sql.query<{ balance: number }>('SELECT balance FROM account')
  assert.equal(
    rows.map(({ balance }) => balance),
    [101, 101],
  )
})

test('a duplicate key is the caller’s to judge, and its connection stays good', async () => {
  await rejects(
    sql.execute('INSERT INTO account (id, balance) VALUES (1, 1)'),
    (error) => (error as { code?: string }).code === 'ER_DUP_ENTRY' && !(error instanceof ShoalError),
  )
})

testOfFaults('a statement that gets no answer fails in time, and the next one has another connection', async () => {
  await using impatient = new Database(url, { timeoutMs: 300, connectionLimit: 1 })
  await impatient.query('SELECT 1')
  await server.pause()
  try {
    // The server may answer a quick statement before the signal stops all its threads.
    await rejects(
      impatient.query('SELECT SLEEP(2)'),
      (error) => error instanceof Transient && error.code === 'Unavailable',
    )
  } finally {
    server.resume()
  }
  const [row] = await impatient.query<{ three: number }>('SELECT 3 AS three')
  assert.is(row?.three, 3)
})

/** A line to the database that can go dead, or break once a text went through. */
async function faultyLine() {
  const target = new URL(url)
  const lines = new Set<{ near: Socket; dead: boolean }>()
  /** With the byte that says a statement follows: READ COMMITTED has the word too. */
  const faults = { breakAfter: undefined as RegExp | undefined }
  const tcp = createServer((near) => {
    const line = { near, dead: false }
    lines.add(line)
    const far = connect(Number(target.port), target.hostname)
    far.on('data', (chunk) => line.dead || near.write(chunk))
    near.on('data', (chunk) => {
      if (line.dead) return
      far.write(chunk)
      if (faults.breakAfter === undefined || !faults.breakAfter.test(chunk.toString('latin1'))) return
      faults.breakAfter = undefined
      line.dead = true
      // Not before the server has done what it was told.
      far.once('data', () => near.destroy())
    })
    for (const socket of [near, far]) socket.on('error', () => undefined)
    near.on('close', () => far.destroy())
  })
  tcp.listen(0, '127.0.0.1')
  await once(tcp, 'listening')
  const through = new URL(url)
  through.host = `127.0.0.1:${(tcp.address() as AddressInfo).port}`
  const database = new Database(through.href, { connectionLimit: 1, timeoutMs: 300 })
  return {
    database,
    faults,
    goDead() {
      for (const line of lines) line.dead = true
    },
    async [Symbol.asyncDispose]() {
      await database[Symbol.asyncDispose]()
      tcp.close()
      for (const { near } of lines) near.destroy()
    },
  }
}

test('a connection that went dead fails one statement, not the next', async () => {
  await using line = await faultyLine()
  await line.database.query('SELECT 1')
  line.goDead()
  await rejects(line.database.query('SELECT 2'), code('Unavailable'))
  assert.equal(await line.database.query('SELECT 3 AS three'), [{ three: 3 }])
})

test('when the answer to COMMIT is lost, only work said to be idempotent is run again', async () => {
  await using line = await faultyLine()
  // MySQL's clients put the number of query attributes, none, before the text.
  // biome-ignore lint/suspicious/noControlCharactersInRegex: it is how the packet begins
  const commit = /\x03(\x00\x01)?COMMIT/
  let runs = 0
  const add = async (tx: Sql) => {
    runs++
    await tx.execute('UPDATE account SET balance = balance + 1 WHERE id = 1')
  }
  const balance = async () =>
    (await sql.query<{ balance: number }>('SELECT balance FROM account WHERE id = 1'))[0]?.balance
  line.faults.breakAfter = commit
  await rejects(line.database.transaction(add), code('Unavailable'))
  assert.equal([runs, await balance()], [1, 101], 'it was committed all the same')
  line.faults.breakAfter = commit
  await line.database.transaction(add, { idempotent: true })
  assert.equal([runs, await balance()], [3, 103])
})

testOfFaults('a server that is gone is Unavailable, and is used again when it is back', async () => {
  await sql.query('SELECT 1')
  await server.kill()
  await rejects(sql.query('SELECT 1'), (error) => error instanceof Transient && error.code === 'Unavailable')
  await rejects(
    sql.transaction((tx) => tx.query('SELECT 1'), { attempts: 2 }),
    code('Unavailable'),
  )
  await server.start()
  const rows = await until('the database answers', () => sql.query<{ balance: number }>('SELECT balance FROM account'))
  assert.is(rows.length, 2)
})

test('the server’s clock is Unix milliseconds', async () => {
  assert.ok(Math.abs((await sql.now()) - Date.now()) < 5000)
})

test('migrations run once, in order, also when two replicas start together; a newer schema is refused', async () => {
  await using dir = await temporaryDir('shoal-migrations')
  await using replica = new Database(url)
  const write = (name: string, text: string) => writeFile(join(dir.path, name), text)
  await write(
    '0001_one.sql',
    '-- a comment; with a semicolon;\nCREATE TABLE one (\n  id INT PRIMARY KEY, -- why;not\n  x INT\n);\n\nINSERT INTO one VALUES (1, 1);\n',
  )
  await write('0002_two.sql', 'ALTER TABLE one ADD COLUMN y INT;\n')
  await write('README.md', 'not SQL')
  await Promise.all([sql.migrate(dir.path), replica.migrate(dir.path)])
  await sql.migrate(dir.path)
  assert.equal(await sql.query('SELECT id, x, y FROM one'), [{ id: 1, x: 1, y: null }])
  const applied = await sql.query<{ name: string }>('SELECT name FROM schema_migration ORDER BY version')
  assert.equal(
    applied.map(({ name }) => name),
    ['0001_one.sql', '0002_two.sql'],
  )

  await using older = await temporaryDir('shoal-migrations')
  await mkdir(older.path, { recursive: true })
  await writeFile(join(older.path, '0001_one.sql'), '')
  await rejects(sql.migrate(older.path), code('SchemaTooNew'))
  // The lock is free again.
  await replica.migrate(dir.path)

  await write('0003_wrong.sql', 'SELECT nonsense FROM nowhere;\n')
  await rejects(sql.migrate(dir.path), (error) => error instanceof Error)
  await write('0003_wrong.sql', 'SELECT 1;\n')
  await sql.migrate(dir.path)
})

test('statements end with a semicolon at the end of a line', () => {
  assert.equal(statements("-- a;\nA 'x;y';\r\n  -- b\nB\n  c ;  \nD"), ["A 'x;y'", 'B\n  c', 'D'])
})

test('servers without SKIP LOCKED, or with a statement binlog, are refused', () => {
  const of = (version: string, format = 'ROW', log = 1) => unsupported({ version, format, log }) === undefined
  assert.equal(
    ['8.0.1', '8.4.3', '9.1.0-log', '10.6.0-MariaDB', '5.5.5-10.11.6-MariaDB-0+deb12u1', '11.8.2-MariaDB'].map((v) =>
      of(v),
    ),
    [true, true, true, true, true, true],
  )
  assert.equal(
    ['8.0.0', '5.7.44-log', '10.5.26-MariaDB', 'what'].map((v) => of(v)),
    [false, false, false, false],
  )
  assert.equal([of('8.4.3', 'STATEMENT'), of('8.4.3', 'MIXED'), of('8.4.3', 'STATEMENT', 0)], [false, false, true])
})

test.after(async () => {
  await sql[Symbol.asyncDispose]()
  await server[Symbol.asyncDispose]()
})

test.run()
