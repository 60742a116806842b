import { createHash, randomBytes } from 'node:crypto'
import { mkdir, readFile, writeFile } from 'node:fs/promises'
import { join, resolve } from 'node:path'
import { type Connection, createConnection } from 'mysql2/promise'
import { newDataDir, serverProgram } from './databaseFiles.ts'
import { freePort, type Program, startProgram, temporaryDir, until } from './process.ts'

export interface DatabaseOptions {
  /** Kept after dispose; default: a temporary folder. */
  dir?: string
  /** Never the server of SHOAL_MYSQL_URL: for tests that stop it. */
  own?: boolean
}

export interface DatabaseServer extends AsyncDisposable {
  /** False for the server of SHOAL_MYSQL_URL: it can't be stopped, and on dispose our schemas are dropped from it. */
  readonly own: boolean
  readonly port: number
  /** Makes a schema, and a user that owns only it; returns that user's mysql:// URL. Idempotent. */
  createSchema(name: string): Promise<string>
  /** The administrator's URL of a schema. */
  url(schema: string): string
  stop(): Promise<void>
  /** Same port, same data; returns when it answers. */
  start(): Promise<void>
  kill(): Promise<void>
  /** Alive but answering nobody. */
  pause(): Promise<void>
  resume(): void
}

/** MySQL or MariaDB: SHOAL_MYSQL_URL's, else a private server from the installed package. */
export async function startDatabase(options: DatabaseOptions = {}): Promise<DatabaseServer> {
  const given = process.env.SHOAL_MYSQL_URL
  return given && !options.own ? givenServer(new URL(given)) : ownServer(options)
}

/** What both have: schemas and users, made by an administrator. */
function schemas(administrator: URL, secret: string, suffix = '') {
  const made = new Map<string, string>()
  const run = async (statements: string[]) => {
    const connection: Connection = await createConnection(administrator.href)
    try {
      for (const statement of statements) await connection.query(statement)
    } finally {
      await connection.end()
    }
  }
  return {
    async createSchema(name: string): Promise<string> {
      if (!/^[a-zA-Z0-9_-]{1,50}$/.test(name)) throw new Error(`not a schema name: ${name}`)
      const [schema, user] = [`${name}${suffix}`, `${name.slice(0, 20)}${suffix}`]
      // Derived, so that the URL stays the same when the server's folder is used again.
      const password = createHash('sha256').update(`${secret}/${schema}`).digest('hex').slice(0, 32)
      await run([
        `CREATE DATABASE IF NOT EXISTS \`${schema}\` CHARACTER SET utf8mb4`,
        `CREATE USER IF NOT EXISTS '${user}'@'%' IDENTIFIED BY '${password}'`,
        `GRANT ALL ON \`${schema.replaceAll('_', '\\_')}\`.* TO '${user}'@'%'`,
      ])
      made.set(schema, user)
      return Object.assign(new URL(administrator), { username: user, password, pathname: `/${schema}` }).href
    },
    url: (schema: string) => Object.assign(new URL(administrator), { pathname: `/${schema}${suffix}` }).href,
    drop: () =>
      run(
        [...made].flatMap(([schema, user]) => [
          `DROP DATABASE IF EXISTS \`${schema}\``,
          `DROP USER IF EXISTS '${user}'@'%'`,
        ]),
      ),
  }
}

async function givenServer(administrator: URL): Promise<DatabaseServer> {
  process.stderr.write(`using the database server ${administrator.host} of SHOAL_MYSQL_URL\n`)
  const { drop, ...rest } = schemas(
    administrator,
    randomBytes(16).toString('hex'),
    `_${randomBytes(4).toString('hex')}`,
  )
  const refuse = (): never => {
    throw new Error('the server of SHOAL_MYSQL_URL is not ours to stop: start the database with {own: true}')
  }
  return {
    ...rest,
    own: false,
    port: Number(administrator.port || 3306),
    start: refuse,
    stop: refuse,
    kill: refuse,
    pause: refuse,
    resume: refuse,
    [Symbol.asyncDispose]: drop,
  }
}

async function ownServer(options: DatabaseOptions): Promise<DatabaseServer> {
  const temporary = options.dir === undefined ? await temporaryDir('shoal-db') : undefined
  const dir = resolve(temporary?.path ?? options.dir ?? '.')
  await mkdir(dir, { recursive: true })
  const { port, password } = await settings(join(dir, 'settings.json'))
  const program = serverProgram()
  const dataDir = join(dir, 'data')
  await newDataDir(program, dataDir)
  // Run at each start, before the first connection is taken: from then on there is one administrator, with a password.
  await writeFile(
    join(dir, 'init.sql'),
    [
      `CREATE USER IF NOT EXISTS 'shoal'@'%' IDENTIFIED BY '${password}';`,
      `GRANT ALL ON *.* TO 'shoal'@'%' WITH GRANT OPTION;`,
      `DROP USER IF EXISTS 'root'@'127.0.0.1', 'root'@'::1', ''@'localhost';`,
      `ALTER USER 'root'@'localhost' IDENTIFIED BY '${password}';`,
      '',
    ].join('\n'),
    { mode: 0o600 },
  )
  const administrator = new URL(`mysql://shoal:${password}@127.0.0.1:${port}/`)

  let server: Program
  const start = async () => {
    server = startProgram(program.server, serverArgs({ dir, dataDir, port, mariadb: program.mariadb }), {
      name: program.mariadb ? 'mariadbd' : 'mysqld',
      logFile: join(dir, 'log'),
    })
    const answers = async () => {
      await (await createConnection({ uri: administrator.href, connectTimeout: 5000 })).end()
      return true
    }
    await until(`database on port ${port}`, answers, { timeoutMs: 60_000, unless: server })
  }
  await start()
  const { drop: _, ...rest } = schemas(administrator, password)
  return {
    ...rest,
    own: true,
    port,
    start,
    stop: () => server.stop({ timeoutMs: 30_000 }),
    kill: () => server.kill(),
    pause: () => server.pause(),
    resume: () => server.resume(),
    async [Symbol.asyncDispose]() {
      if (temporary) await server.kill()
      else await server.stop({ timeoutMs: 30_000 })
      await temporary?.[Symbol.asyncDispose]()
    },
  }
}

/** Small and quick to start; what matters to us (isolation, locking, row binlog) is as in production. */
function serverArgs(o: { dir: string; dataDir: string; port: number; mariadb: boolean }): string[] {
  return [
    '--no-defaults',
    ...(process.getuid?.() === 0 ? ['--user=root'] : []),
    `--datadir=${o.dataDir}`,
    `--port=${o.port}`,
    '--bind-address=127.0.0.1',
    // A socket's path has a limit of about 100 characters, which the folder may exceed: relative to the data folder.
    '--socket=socket',
    `--pid-file=${o.dir}/pid`,
    `--init-file=${o.dir}/init.sql`,
    '--skip-name-resolve',
    '--log-bin=binlog',
    '--server-id=1',
    '--binlog-format=ROW',
    '--sync-binlog=0',
    '--innodb-flush-log-at-trx-commit=2',
    '--innodb-buffer-pool-size=64M',
    '--max-connections=500',
    '--character-set-server=utf8mb4',
    ...(o.mariadb
      ? ['--innodb-log-file-size=16M']
      : ['--mysqlx=OFF', '--innodb-redo-log-capacity=32M', '--secure-file-priv=NULL']),
  ]
}

async function settings(file: string): Promise<{ port: number; password: string }> {
  try {
    return JSON.parse(await readFile(file, 'utf8'))
  } catch {
    const made = { port: await freePort(), password: randomBytes(16).toString('hex') }
    await writeFile(file, JSON.stringify(made), { mode: 0o600 })
    return made
  }
}
