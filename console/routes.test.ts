import { globSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { createLogger } from '../runtime/log.ts'
import { Metrics } from '../runtime/metrics.ts'
import { createServer, listen } from '../runtime/server.ts'
import { registerConsole } from './routes.ts'

const test = suite('console')
const server = createServer({ log: createLogger('test', 'silent'), metrics: new Metrics() })
registerConsole(server)
const { url } = await listen(server, { host: '127.0.0.1', port: 0 })

test('the page and what it names are served, and nothing else may be loaded', async () => {
  const page = await fetch(`${url}/`)
  assert.equal([page.status, page.url], [200, `${url}/console/`])
  const html = await page.text()
  const named = [...html.matchAll(/(?:src|href)="([\w.]+)"/g)].map(([, name = '']) => name)
  assert.equal(named.sort(), ['console.css', 'console.js'])
  for (const name of named) {
    const answer = await fetch(`${url}/console/${name}`)
    assert.is(answer.status, 200, name)
    assert.is(answer.headers.get('x-content-type-options'), 'nosniff')
    assert.is(await answer.text(), readFileSync(join(import.meta.dirname, name), 'utf8'))
  }
  const policy = page.headers.get('content-security-policy') ?? ''
  for (const part of ["default-src 'none'", "script-src 'self'", "frame-ancestors 'none'"])
    assert.ok(policy.includes(part), policy)
})

test('no other file of the folder is served', async () => {
  for (const name of globSync('*.ts', { cwd: import.meta.dirname }))
    assert.is((await fetch(`${url}/console/${name}`)).status, 404, name)
  assert.is((await fetch(`${url}/console/..%2fpackage.json`)).status, 404)
})

test('what the hub says is never set as markup', () => {
  const script = readFileSync(join(import.meta.dirname, 'console.js'), 'utf8')
  assert.not.match(script, /innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(/)
})

test.after(() => server.close())
test.run()
