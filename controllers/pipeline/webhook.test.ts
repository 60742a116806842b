import { execFileSync } from 'node:child_process'
import { createHmac } from 'node:crypto'
import { appendFile, mkdir } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { Transient } from '../../api/errors.ts'
import { Pipeline } from '../../api/pipeline.ts'
import { startDatabase } from '../../hack/parts/database.ts'
import { temporaryDir } from '../../hack/parts/process.ts'
import { findJob } from '../../queue/control.ts'
import { createLogger } from '../../runtime/log.ts'
import { Metrics } from '../../runtime/metrics.ts'
import { createServer, listen } from '../../runtime/server.ts'
import { Database } from '../../runtime/sql.ts'
import { queueTips } from './poll.ts'
import { registerWebhook } from './webhook.ts'

const test = suite('webhook')
const parts = new AsyncDisposableStack()
const mariadb = parts.use(await startDatabase({ own: true }))
const database = parts.use(new Database(await mariadb.createSchema('builds')))
await database.migrate(join(import.meta.dirname, '../../queue/migrations'))

const secret = 'a shared secret'
const secrets: Record<string, Record<string, string>> = { 'demo/hook': { secret }, 'demo/empty': { secret: '' } }
const pipelineOf = (name: string, webhookSecret?: string) =>
  Pipeline.parse(
    Pipeline.make(
      { name, namespace: 'demo' },
      {
        source: {
          url: 'https://git.example.com/web.git',
          branches: ['main', 'release/*'],
          tags: ['v*'],
          ...(webhookSecret !== undefined && { webhookSecretRef: { name: webhookSecret } }),
        },
        build: { command: ['true'], output: 'dist' },
      },
    ),
  )
const pipelines = new Map(
  [pipelineOf('web', 'hook'), pipelineOf('open'), pipelineOf('lost', 'not-there'), pipelineOf('empty', 'empty')].map(
    (pipeline) => [`demo/${pipeline.metadata.name}`, pipeline],
  ),
)
const metrics = new Metrics()
const log = createLogger('test', 'silent')
const server = createServer({ log, metrics })
let changes = 0
const atOnce = async (key: string) => secrets[key]
let readSecret: (key: string) => Promise<Record<string, string> | undefined> = atOnce
registerWebhook(server, {
  database,
  metrics,
  log,
  pipeline: (key) => pipelines.get(key),
  readSecret: (namespace, name) => readSecret(`${namespace}/${name}`),
  onChange: () => changes++,
})
const { url } = await listen(server, { host: '127.0.0.1', port: 0 })
parts.defer(() => server.close())

const sign = (body: string, key = secret) => `sha256=${createHmac('sha256', key).update(body).digest('hex')}`
async function post(body: string, headers: Record<string, string> = {}, pipeline = 'web') {
  const answer = await fetch(`${url}/webhooks/demo/${pipeline}`, {
    method: 'POST',
    body,
    headers: { 'content-type': 'application/json', ...headers },
  })
  return { status: answer.status, body: (await answer.json()) as Record<string, string> }
}
const signed = (event: object, more: Record<string, string> = {}) => {
  const body = JSON.stringify(event)
  return post(body, { 'x-hub-signature-256': sign(body), 'x-github-event': 'push', ...more })
}
const commit = (digit: string) => digit.repeat(40)
const refusals = async () => (await metrics.registry.getSingleMetric('shoal_webhook_refused_total')?.get())?.values[0]

const gitIn =
  (dir: string) =>
  (args: string[], env: Record<string, string> = {}) =>
    execFileSync('git', ['-c', 'user.name=t', '-c', 'user.email=t@example.com', '-C', dir, ...args], {
      encoding: 'utf8',
      stdio: ['ignore', 'pipe', 'ignore'],
      env: { ...process.env, ...env },
    }).trim()

test('a signed push queues its commit once, however often it is delivered', async () => {
  const push = { ref: 'refs/heads/main', before: commit('0'), after: commit('a'), repository: { id: 1 } }
  assert.equal(await signed(push), { status: 202, body: { job: 'web-aaaaaaaaaaaa' } })
  assert.equal(await signed(push), { status: 202, body: { job: 'web-aaaaaaaaaaaa' } })
  const job = await findJob(database, 'demo', 'web-aaaaaaaaaaaa')
  assert.equal([job?.phase, job?.commit, job?.ref], ['Queued', commit('a'), 'refs/heads/main'])
  const [count] = await database.query<{ n: number }>('SELECT COUNT(*) AS n FROM job')
  assert.is(count?.n, 1)
  assert.is(changes > 0, true)
})

test('a push is queued while the API server is away, by the secret that was last read', async () => {
  const push = (digit: string) => signed({ ref: 'refs/heads/main', after: commit(digit) })
  assert.is((await push('1')).status, 202)
  try {
    readSecret = () => Promise.reject(new Transient('Unavailable', 'away'))
    assert.is((await push('2')).status, 202)
    readSecret = () => new Promise(() => undefined)
    assert.is((await push('3')).status, 202)
    assert.is((await post('{}', { 'x-hub-signature-256': sign('{}', 'another') })).status, 401)
  } finally {
    readSecret = atOnce
  }
})

test('a push that comes while the database is away is queued when it is back', async () => {
  await mariadb.kill()
  const answer = signed({ ref: 'refs/heads/main', after: commit('4') })
  await mariadb.start()
  assert.equal(await answer, { status: 202, body: { job: 'web-444444444444' } })
})

test('whatever is wrong with who asks, the answer is the same, and counted', async () => {
  const body = JSON.stringify({ ref: 'refs/heads/main', after: commit('b') })
  const before = (await refusals())?.value ?? 0
  const answers = [
    await post(body, { 'x-hub-signature-256': sign(body, 'another') }),
    await post(body, { 'x-hub-signature-256': sign(`${body} `) }),
    await post(body, { 'x-hub-signature-256': 'sha256=' }),
    await post(body),
    await post(body, { 'x-hub-signature-256': sign(body) }, 'unknown'),
    await post(body, { 'x-hub-signature-256': sign(body) }, 'open'),
    await post(body, { 'x-hub-signature-256': sign(body, '') }, 'open'),
    await post(body, { 'x-hub-signature-256': sign(body) }, 'lost'),
    await post(body, { 'x-hub-signature-256': sign(body, '') }, 'empty'),
  ]
  for (const answer of answers) assert.equal(answer, answers[0])
  assert.equal([answers[0]?.status, answers[0]?.body.code], [401, 'Unauthorized'])
  assert.is((await refusals())?.value, before + answers.length)
  assert.is(await findJob(database, 'demo', 'web-bbbbbbbbbbbb'), undefined)
})

test('a deleted branch, another branch and another event are taken note of, not built', async () => {
  const events = [
    { ref: 'refs/heads/main', after: commit('0'), deleted: true },
    { ref: 'refs/heads/main', after: commit('0') },
    { ref: 'refs/heads/feature', after: commit('c') },
    { ref: 'refs/heads/release/1/x', after: commit('c') },
    { ref: 'refs/tags/nightly', after: commit('c') },
  ]
  for (const event of events) {
    const answer = await signed(event)
    assert.is(answer.status, 202)
    assert.ok(answer.body.ignored, JSON.stringify(event))
  }
  const ping = await signed({ zen: 'Keep it logically awesome.' }, { 'x-github-event': 'ping' })
  assert.is(ping.status, 202)
  assert.ok(ping.body.ignored)
})

test('branches and tags match by pattern; an annotated tag is its commit', async () => {
  assert.is((await signed({ ref: 'refs/heads/release/1', after: commit('d') })).body.job, 'web-dddddddddddd')
  assert.is((await signed({ ref: 'refs/tags/v1', after: commit('e') })).body.job, 'web-eeeeeeeeeeee')
  const annotated = { ref: 'refs/tags/v2', after: commit('f'), head_commit: { id: commit('1') } }
  assert.is((await signed(annotated)).body.job, 'web-111111111111')
})

test('pushes made while no hub listened come before the first that is heard of, the oldest first', async () => {
  await using dir = await temporaryDir('shoal-webhook')
  const git = gitIn(dir.path)
  const commitAt = (date: string) => {
    git(['commit', '-q', '--allow-empty', '-m', date], { GIT_COMMITTER_DATE: `${date}T12:00:00Z` })
    return git(['rev-parse', 'HEAD'])
  }
  git(['init', '-q', '-b', 'main'])
  const known = commitAt('2020-01-01')
  git(['checkout', '-q', '-b', 'release/2'])
  const second = commitAt('2020-01-03')
  git(['checkout', '-q', '-b', 'release/1', known])
  const first = commitAt('2020-01-02')
  git(['checkout', '-q', 'main'])
  const heard = commitAt('2020-01-04')

  const missed = pipelineOf('missed', 'hook')
  missed.metadata.uid = 'missed'
  missed.spec.source.url = dir.path
  missed.status = { polledAt: '2020-01-01T12:00:00Z' }
  pipelines.set('demo/missed', missed)
  const body = JSON.stringify({ ref: 'refs/heads/main', after: heard })
  await post(body, { 'x-hub-signature-256': sign(body) }, 'missed')
  const rows = await database.query<{ commit: string }>(
    "SELECT commit_id AS `commit` FROM job WHERE pipeline = 'missed' ORDER BY id",
  )
  assert.equal(
    rows.map((row) => row.commit),
    [first, second, heard],
  )
})

test('with paths, a push that changed nothing under them since the last job is not built, by webhook or poll', async () => {
  await using dir = await temporaryDir('shoal-paths')
  const git = gitIn(dir.path)
  const change = async (...files: string[]) => {
    for (const file of files) {
      await mkdir(dirname(join(dir.path, file)), { recursive: true })
      await appendFile(join(dir.path, file), 'more\n')
    }
    git(['add', '.'])
    git(['commit', '-q', '--allow-empty', '-m', files.join(' ')])
    return git(['rev-parse', 'HEAD'])
  }
  git(['init', '-q', '-b', 'main'])
  const part = pipelineOf('part', 'hook')
  part.metadata.uid = 'part'
  part.spec.source = { ...part.spec.source, url: dir.path, paths: ['web', 'lib/*.ts'] }
  pipelines.set('demo/part', part)
  const options = { database, log, readSecret: async () => undefined }
  const pushed = async (after: string) => {
    const body = JSON.stringify({ ref: 'refs/heads/main', after })
    return (await post(body, { 'x-hub-signature-256': sign(body) }, 'part')).body
  }
  const polled = (commit: string) => {
    const tips = [{ ref: 'refs/heads/main', commit }]
    return queueTips(options, part, { tips, signal: AbortSignal.timeout(10_000) })
  }
  const job = (commit: string) => `part-${commit.slice(0, 12)}`
  const first = await change('docs/a.md')
  assert.equal(await pushed(first), { job: job(first) }, 'the first of its ref')
  const docs = await change('docs/a.md', 'lib/deeper/a.ts', 'webs')
  assert.equal(await pushed(docs), { ignored: `nothing under its paths changed since ${first}` })
  assert.is(await polled(docs), undefined)
  // Two commits in one push; the second alone touched nothing.
  await change('web/deeper/index.html')
  const web = await change('docs/a.md')
  assert.is(await polled(web), job(web))
  assert.equal(await pushed(web), { job: job(web) }, 'queued before')
  const library = await change('lib/a.ts')
  assert.equal(await pushed(library), { job: job(library) })
  assert.equal(await pushed(commit('9')), { job: job(commit('9')) }, 'it can’t be told')
})

test('what is signed but no push event is invalid, and says why', async () => {
  const cut = '{"ref": "refs/heads/main", "af'
  const answer = await post(cut, { 'x-hub-signature-256': sign(cut) })
  assert.equal([answer.status, answer.body.code], [422, 'Invalid'])
  for (const event of [{ after: commit('a') }, { ref: 'refs/heads/main', after: '../../etc' }, []]) {
    const refused = await signed(event)
    assert.equal([refused.status, refused.body.code], [422, 'Invalid'], JSON.stringify(event))
  }
})

test('a body beyond the limit is too large before its signature is looked at', async () => {
  const answer = await post('x'.repeat((5 << 20) + 1))
  assert.equal([answer.status, answer.body.code], [413, 'TooLarge'])
})

test.after(() => parts.disposeAsync())
test.run()
