import { execFile } from 'node:child_process'
import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { until } from '../hack/parts/process.ts'

// timeout: 1200 s
const root = join(import.meta.dirname, '..')
const run = promisify(execFile)
const { SHOAL_TEST_MYSQL: up, SHOAL_TEST_MYSQL_DOWN: down } = process.env

/** Everything that holds itself to what the database promises. */
const files = [
  'runtime/sql.test.ts',
  'queue/queue.test.ts',
  'queue/log.test.ts',
  'queue/history.test.ts',
  'queue/healthChecker.test.ts',
  'fleet/counts.test.ts',
  'fleet/fleet.test.ts',
  'fleet/pollRoute.test.ts',
  'fleet/silence.test.ts',
  'artifacts/replicator.test.ts',
]

function commandLines(): string[] {
  return readdirSync('/proc')
    .filter((entry) => /^\d+$/.test(entry))
    .map((pid) => {
      try {
        return readFileSync(`/proc/${pid}/cmdline`, 'utf8')
      } catch {
        return ''
      }
    })
}

if (up === undefined)
  console.log('skipped: SHOAL_TEST_MYSQL names no command that starts a MySQL server and prints its URL')
else {
  const test = suite('MySQL')
  // The command gives a server some seconds; on a busy machine a new data directory takes longer. Again, it waits on.
  const { stdout } = await until('the server has started', () => run(up), { timeoutMs: 300_000 })
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
    // It closes its port long before it has written what it must.
    const { port } = new URL(env.SHOAL_MYSQL_URL)
    const gone = () => !commandLines().some((line) => line.includes(`--port=${port}`))
    await until('the server has stopped', gone, { timeoutMs: 30_000 })
  })
  test.run()
}
