import { execFile } from 'node:child_process'
import { connect } from 'node:net'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { until } from '../hack/parts/process.ts'

// timeout: 420 s
const root = join(import.meta.dirname, '..')
const run = promisify(execFile)
const { SHOAL_TEST_MYSQL: up, SHOAL_TEST_MYSQL_DOWN: down } = process.env

/** Everything that holds itself to what the database promises. */
const files = [
  'runtime/sql.test.ts',
  'queue/queue.test.ts',
  'queue/healthChecker.test.ts',
  'fleet/fleet.test.ts',
  'artifacts/replicator.test.ts',
]

if (up === undefined)
  console.log('skipped: SHOAL_TEST_MYSQL names no command that starts a MySQL server and prints its URL')
else {
  const test = suite('MySQL')
  const { stdout } = await run(up)
  const env = { ...process.env, SHOAL_MYSQL_URL: stdout.trim() }
  for (const file of files)
    test(`${file} holds on MySQL as on MariaDB`, async () => {
      const ended = await run(process.execPath, [file], { cwd: root, env, timeout: 120_000 }).catch(
        (error: { stdout?: string; message: string }) => ({ stdout: `${error.message}\n${error.stdout}` }),
      )
      assert.match(ended.stdout, /Total: +(\d+)\n +Passed: +\1/, ended.stdout)
    })
  test.after(async () => {
    if (down === undefined) return
    await run(down)
    const { hostname, port } = new URL(env.SHOAL_MYSQL_URL)
    const gone = () =>
      new Promise<boolean>((resolve) => {
        const socket = connect(Number(port), hostname, () => {
          socket.destroy()
          resolve(false)
        })
        socket.on('error', () => resolve(true))
      })
    await until('the server has stopped', gone, { timeoutMs: 30_000 })
  })
  test.run()
}
