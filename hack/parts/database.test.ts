import { createConnection, type RowDataPacket } from 'mysql2/promise'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { type DatabaseServer, startDatabase } from './database.ts'
import { temporaryDir } from './process.ts'

const test = suite('parts: database')

async function query(url: string, sql: string): Promise<unknown[]> {
  const connection = await createConnection(url)
  try {
    const [rows] = await connection.query<RowDataPacket[]>(sql)
    return Array.isArray(rows) ? rows.map((row) => Object.values(row)[0]) : []
  } finally {
    await connection.end()
  }
}

const refused = async (url: string, sql: string) => {
  const outcome = await query(url, sql).catch((error: Error) => error.message)
  assert.match(String(outcome), /denied/i)
}

async function twoSchemas(database: DatabaseServer): Promise<void> {
  const [builds, fleet] = [await database.createSchema('builds'), await database.createSchema('fleet_eu-west')]
  await query(builds, 'CREATE TABLE jobs (id INT)')
  await query(builds, 'INSERT INTO jobs VALUES (7)')
  assert.equal(await query(await database.createSchema('builds'), 'SELECT id FROM jobs'), [7])
  const schema = new URL(builds).pathname.slice(1)
  await refused(fleet, `SELECT id FROM \`${schema}\`.jobs`)
  await refused(builds, 'CREATE DATABASE other')
  assert.equal(await query(database.url('builds'), 'SELECT id FROM jobs'), [7])
  assert.equal(await query(builds, 'SELECT @@binlog_format'), ['ROW'])
}

test('a schema belongs to its user alone', async () => {
  await using database = await startDatabase({ own: true })
  await twoSchemas(database)
})

test('rows outlive stop, kill and a new start', async () => {
  await using database = await startDatabase({ own: true })
  const url = await database.createSchema('builds')
  await query(url, 'CREATE TABLE jobs (id INT)')
  await database.stop()
  assert.instance(await query(url, 'SELECT 1').catch((error) => error), Error)
  await database.start()
  await query(url, 'INSERT INTO jobs VALUES (7)')
  await database.kill()
  await database.start()
  assert.equal(await query(url, 'SELECT id FROM jobs'), [7])
})

test('nobody comes in without a password', async () => {
  await using database = await startDatabase({ own: true })
  await refused(`mysql://root@127.0.0.1:${database.port}/`, 'SELECT 1')
  await refused(`mysql://nobody@127.0.0.1:${database.port}/`, 'SELECT 1')
})

test('a folder that is given is kept, and used again with the same URLs', async () => {
  await using dir = await temporaryDir('shoal-parts')
  let url = ''
  {
    await using database = await startDatabase({ own: true, dir: dir.path })
    url = await database.createSchema('builds')
    await query(url, 'CREATE TABLE jobs (id INT)')
  }
  await using database = await startDatabase({ own: true, dir: dir.path })
  assert.is(await database.createSchema('builds'), url)
  assert.equal(await query(url, 'SELECT id FROM jobs'), [])
})

test('on the server of SHOAL_MYSQL_URL schemas have names of their own, and are dropped at the end', async () => {
  await using server = await startDatabase({ own: true })
  const before = process.env.SHOAL_MYSQL_URL
  process.env.SHOAL_MYSQL_URL = server.url('')
  try {
    {
      await using first = await startDatabase()
      await using second = await startDatabase()
      assert.not(first.own)
      await twoSchemas(first)
      await twoSchemas(second)
      assert.is((await query(server.url(''), "SHOW DATABASES LIKE 'builds%'")).length, 2)
      assert.throws(() => first.stop(), /not ours to stop/)
    }
    assert.equal(await query(server.url(''), "SHOW DATABASES LIKE 'builds%'"), [])
    assert.equal(await query(server.url(''), "SELECT user FROM mysql.user WHERE user LIKE 'builds%'"), [])
  } finally {
    if (before === undefined) delete process.env.SHOAL_MYSQL_URL
    else process.env.SHOAL_MYSQL_URL = before
  }
})

test.run()
