import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { temporaryDir } from '../parts/process.ts'
import { runFile } from './testFile.ts'

const test = suite('test runner')
const uvu = new URL('../../node_modules/uvu/dist/index.mjs', import.meta.url).href

async function run(code: string, timeoutMs = 20_000) {
  await using dir = await temporaryDir('shoal-runner')
  const { passed, failed, skipped, notes } = await outcomeOf(dir.path, code, timeoutMs)
  return { passed, failed, skipped, notes }
}

async function outcomeOf(root: string, code: string, timeoutMs = 20_000) {
  await writeFile(join(root, 'a.test.ts'), `import { suite } from '${uvu}'\nconst test = suite('inner')\n${code}`)
  return runFile({ root, file: 'a.test.ts', timeoutMs, signal: new AbortController().signal })
}

test('each test counts', async () => {
  const code = `test('a', () => {}); test('b', () => { throw new Error('no') }); test.skip('c', () => {}); test.run()`
  assert.equal(await run(code), { passed: 1, failed: 1, skipped: 1, notes: [] })
})

test('a test that failed is named with the first line of its error', async () => {
  await using dir = await temporaryDir('shoal-runner')
  const code = `test('a', () => {}); test('b "c"', () => { throw new Error('no\\nmore') }); test.run()`
  assert.equal((await outcomeOf(dir.path, code)).failures, ['inner  "b "c"": no'])
})

test('a suite that says why it is skipped is skipped, not failed', async () => {
  const code = `console.log('skipped: no real node here')`
  assert.equal(await run(code), { passed: 0, failed: 0, skipped: 1, notes: ['skipped: no real node here'] })
})

test('a file that waits for something that never comes has failed', async () => {
  const code = `test('a', () => new Promise(() => {})); test.run()`
  assert.equal(await run(code), { passed: 0, failed: 1, skipped: 0, notes: ['ended with code 1'] })
})

test('a file whose set-up throws has failed', async () => {
  const code = `test.before(() => { throw new Error('no') }); test('a', () => {}); test.run()`
  assert.equal(await run(code), { passed: 0, failed: 1, skipped: 0, notes: [] })
})

test('a file without tests, or that forgets to run them, has failed', async () => {
  assert.equal((await run(`test('a', () => {})`)).failed, 1)
  assert.equal((await run('test.run()')).notes, ['has no tests'])
})

test('a file that does not end is killed with what it started', async () => {
  const code = `import { spawn } from 'node:child_process'
    spawn('sleep', ['77'], { stdio: 'inherit' }); test('a', () => {}); test.run()`
  const outcome = await run(code, 1500)
  assert.equal([outcome.failed, outcome.notes], [1, ['not done within 1.5 s; killed']])
})

test('a process that is left running is named', async () => {
  const code = `import { spawn } from 'node:child_process'
    spawn('sleep', ['78'], { stdio: 'ignore' }).unref(); test('a', () => {}); test.run()`
  const outcome = await run(code)
  assert.equal([outcome.passed, outcome.failed, outcome.notes], [1, 1, ['left running: sleep 78']])
})

test.run()
