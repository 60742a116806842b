import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'

const test = suite('a role’s process')

/** Runs a role in a process of its own; `ready` on its output is answered with the signals. */
async function run(body: string, signals: NodeJS.Signals[] = []): Promise<{ code: number | null; lines: string[] }> {
  const script = `
    import { createLogger } from '${import.meta.dirname}/log.ts'
    import { runRole } from '${import.meta.dirname}/shutdown.ts'
    import { systemClock } from '${import.meta.dirname}/clock.ts'
    const log = createLogger('test')
    await runRole(log, async (signal) => { ${body} })`
  const child = spawn(process.execPath, ['--input-type=module', '-e', script], { stdio: ['ignore', 'pipe', 'inherit'] })
  let output = ''
  child.stdout.on('data', (chunk: Buffer) => {
    const before = output.split('ready').length
    output += chunk.toString()
    if (output.split('ready').length > before) {
      const signal = signals.shift()
      if (signal) child.kill(signal)
    }
  })
  const [code] = (await once(child, 'close')) as [number | null]
  return { code, lines: output.trim().split('\n') }
}

test('SIGTERM lets the role end, and the process with it', async () => {
  const waits = `setInterval(() => undefined, 1000); log.info('ready'); await systemClock.sleep(60_000, signal)`
  const { code, lines } = await run(waits, ['SIGTERM'])
  assert.is(code, 0)
  assert.match(lines.at(-1) ?? '', '"stopped"')
})

test('a second signal ends it at once', async () => {
  const stuck = `signal.addEventListener('abort', () => log.info('ready')); log.info('ready'); await systemClock.sleep(60_000)`
  const { code } = await run(stuck, ['SIGTERM', 'SIGINT'])
  assert.is(code, 1)
})

test('a role that throws, and what nobody caught, is logged and ends in 1', async () => {
  const bodies = [`throw new Error('boom')`, `Promise.reject(new Error('boom')); await systemClock.sleep(60_000)`]
  for (const body of [...bodies, `setTimeout(() => { throw new Error('boom') }); await systemClock.sleep(60_000)`]) {
    const { code, lines } = await run(body)
    assert.is(code, 1)
    assert.match(lines.at(-1) ?? '', /"level":"error".*boom/)
  }
})

test('a log has no contents of statements or requests', async () => {
  const leak = `log.error({ err: Object.assign(new Error('away'), { sql: 'secret', headers: { authorization: 'secret' }, code: 'E' }) }, 'failed')`
  const { lines } = await run(leak)
  assert.match(lines[0] ?? '', '"code":"E"')
  assert.not.match(lines.join('\n'), 'secret')
})

test.run()
