import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { freePort, patience, startProgram, temporaryDir, until } from './process.ts'

const test = suite('parts: processes')

const failure = (promise: Promise<unknown>) =>
  promise.then(
    () => new Error('nothing was thrown'),
    (error: Error) => error,
  )

const alive = (pid: number) => {
  try {
    process.kill(pid, 0)
    return true
  } catch {
    return false
  }
}

test('until returns the first truthy value; an error means not yet', async () => {
  let tries = 0
  const value = await until('third try', () => {
    if (++tries < 2) throw new Error('not yet')
    return tries === 3 && 'there'
  })
  assert.is(value, 'there')
})

test('until says at the deadline what it waited for and what went wrong last', async () => {
  const fails = () => Promise.reject(new Error('connection refused'))
  const error = await failure(until('the answer', fails, { timeoutMs: 60 }))
  assert.is(error.message, `the answer: not within ${60 * patience} ms: connection refused`)
  assert.is(String(error.cause), 'Error: connection refused')
})

test('until fails at once, with the end of the log, when the program it needs has ended', async () => {
  await using dir = await temporaryDir('shoal-process')
  const args = ['-c', 'echo no such option; exit 3']
  await using program = startProgram('sh', args, { name: 'server', logFile: join(dir.path, 'log') })
  const error = await failure(until('an answer', () => false, { timeoutMs: 20_000, unless: program }))
  assert.match(error.message, /an answer: server ended \(code 3\)\nno such option/)
})

test('a program that ignores SIGTERM is killed after the grace', async () => {
  await using dir = await temporaryDir('shoal-process')
  const script = 'trap "" TERM; echo ready; while :; do sleep 0.05; done'
  await using program = startProgram('sh', ['-c', script], { logFile: join(dir.path, 'log') })
  await until('ready', async () => (await program.log()).includes('ready'))
  await program.stop({ timeoutMs: 100 })
  assert.is(await program.exited, 'SIGKILL')
  assert.not(program.running)
})

test('a program that does not exist is named', async () => {
  await using dir = await temporaryDir('shoal-process')
  await using program = startProgram('/no/such/program', [], { logFile: join(dir.path, 'log') })
  const error = await failure(until('an answer', () => false, { unless: program }))
  assert.match(error.message, /no\/such\/program/)
})

for (const [how, env] of Object.entries({ 'by the kernel': {}, 'by a watcher': { SHOAL_NO_SETPRIV: '1' } })) {
  test(`kill -9 of the parent ends its programs (${how})`, async () => {
    await using dir = await temporaryDir('shoal-process')
    const module = join(import.meta.dirname, 'process.ts')
    const code = `import { startProgram } from ${JSON.stringify(module)}
      const program = startProgram('sleep', ['300'], { logFile: ${JSON.stringify(join(dir.path, 'log'))} })
      console.log(program.pid)
      setInterval(() => {}, 1000)`
    const parent = spawn(process.execPath, ['--input-type=module-typescript', '-e', code], {
      env: { ...process.env, ...env },
      stdio: ['ignore', 'pipe', 'inherit'],
    })
    const [line] = (await once(parent.stdout, 'data')) as [Buffer]
    const pid = Number(line.toString())
    assert.ok(alive(pid))
    parent.kill('SIGKILL')
    await until('the program is gone', () => !alive(pid))
  })
}

test('a temporary folder is removed; ports are not given twice', async () => {
  let path = ''
  {
    await using dir = await temporaryDir('shoal-process')
    path = dir.path
    assert.ok(existsSync(path))
  }
  assert.not(existsSync(path))
  const ports = await Promise.all(Array.from({ length: 20 }, freePort))
  assert.is(new Set(ports).size, 20)
})

test.run()
