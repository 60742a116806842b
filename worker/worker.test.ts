import { readdir, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { request } from 'undici'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { claimRequest, probeAnswer } from '../api/workerApi.ts'
import { until } from '../hack/parts/process.ts'
import { cancel } from '../queue/control.ts'
import { Fixture, running } from './fixture.ts'

const test = suite('worker')
const fixture = await Fixture.start()
const worker = fixture.startWorker('worker')
test.after(async () => {
  await worker.stop()
  await fixture[Symbol.asyncDispose]()
})

async function fails(job: Promise<{ name: string }>, code: string, timeoutMs?: number): Promise<string> {
  const { name } = await job
  const ended = await fixture.reaches(name, ['Failed', 'Replicating', 'Cancelled'], timeoutMs)
  assert.is(ended.code, code, `${ended.phase} ${ended.message}`)
  return ended.message ?? ''
}
async function builds(job: Promise<{ name: string }>) {
  const { name } = await job
  const ended = await fixture.reaches(name, ['Failed', 'Replicating'])
  assert.is(ended.phase, 'Replicating', `${ended.code} ${ended.message}`)
  const { key } = JSON.parse(ended.facts ?? '{}')
  const blob = await fixture.store.readAll(key, 1_000_000)
  return { name, blob: Buffer.from(blob).toString() }
}
const echo = 'mkdir out; echo 1 >out/a'

test('a commit is built, and what it left is in the store', async () => {
  const job = await fixture.queue('mkdir out; git rev-parse HEAD >out/a; git status --porcelain >>out/a')
  const { blob } = await builds(Promise.resolve(job))
  assert.is(blob, `${job.commit}\n?? out/\n`)
})

test('a commit that is no longer the branch’s tip is built', async () => {
  const old = await fixture.queue('mkdir out; echo old >out/a')
  const { blob } = await builds(fixture.queue('mkdir out; echo new >out/a', { commit: old.commit }))
  assert.is(blob, 'old\n')
})

test('a build sees only its own environment, as a user of its own', async () => {
  const env = [{ name: 'MODE', value: 'fast' }]
  const { blob } = await builds(fixture.queue('mkdir out; env >out/a; id -u >>out/a; id -G >>out/a', { env }))
  const names = [...blob.matchAll(/^(\w+)=/gm)].map(([, name]) => name).sort()
  assert.equal(names, [
    'CI',
    'HOME',
    'LANG',
    'MODE',
    'PATH',
    'PWD',
    'SHOAL_CACHE',
    'SHOAL_COMMIT',
    'SHOAL_REF',
    'TMPDIR',
  ])
  if (process.getuid?.() === 0) assert.match(blob, /\n(2\d{4})\n\1\n$/)
})

test('a build finds no way to the token, the other folders or the source’s credentials', async () => {
  const { blob } = await builds(
    fixture.queue(
      'mkdir out; set +e; (ls ../..; ls ..; cat ../../owner.json; grep -r hunter2[2] . ..; echo end) >out/a 2>&1',
      {
        source: { username: 'someone', password: 'hunter22' },
      },
    ),
  )
  assert.not.match(blob, /hunter22|^owner\.json$|"pid"/m)
})

test('a commit that does not exist is CommitNotFound', async () => {
  assert.match(await fails(fixture.queue(echo, { commit: 'f'.repeat(40) }), 'CommitNotFound'), /f{40}/)
})

test('a repository that does not answer is SourceUnreachable', () =>
  fails(fixture.queue(echo, { source: { url: 'http://127.0.0.1:1/none.git' } }), 'SourceUnreachable').then(() => {}))

test('a build that fails says its last lines', async () => {
  const message = await fails(fixture.queue('seq 100000; echo no such luck >&2; exit 3'), 'BuildFailed')
  assert.match(message, /^\.\/build\.sh ended with code 3\n\d+\n/)
  assert.match(message, /\n100000\nno such luck$/)
  assert.ok(message.length < 2500)
})

test('a command that is not there is BuildFailed', async () => {
  assert.match(await fails(fixture.queue(echo, { command: ['./nowhere'] }), 'BuildFailed'), /code 127\n.*nowhere/)
})

test('a build that hangs is ended with all it started, sessions of their own too', async () => {
  const script = 'setsid sleep 98761 & (trap "" TERM; sleep 98761) & sleep 98761'
  await fails(fixture.queue(script, { timeout: '1s' }), 'BuildTimeout')
  assert.is(running('sleep 98761'), 0)
})

test('what a build leaves running ends with it', async () => {
  const { blob } = await builds(fixture.queue(`${echo}; setsid sleep 98762 & :`))
  assert.is(blob, '1\n')
  assert.is(running('sleep 98762'), 0)
})

const outputs: [what: string, script: string, output: string, code: string][] = [
  ['nothing', 'true', 'out', 'OutputMissing'],
  ['an empty folder', 'mkdir out', 'out', 'OutputMissing'],
  ['a link out of the checkout', 'ln -s /etc out', 'out', 'OutputOutside'],
  ['a link out of it, inside', 'mkdir out; echo 1 >out/a; ln -s /etc/passwd out/b', 'out', 'OutputOutside'],
  ['a folder above', 'true', '../..', 'OutputOutside'],
  ['an absolute path', 'true', '/etc/hostname', 'OutputOutside'],
]
for (const [what, script, output, code] of outputs) {
  test(`${what} as output is ${code}`, () => fails(fixture.queue(script, { output }), code).then(() => {}))
}

test('of 100 MB of output head and tail are kept', async () => {
  const script = `${echo}; echo first; yes 0123456789abcdef | head -c 100000000; echo; echo last`
  const { name } = await builds(fixture.queue(script))
  const log = await fixture.log(name)
  const size = Buffer.byteLength(log)
  assert.ok(size > 5_000_000 && size < 6_000_000, `${size} bytes`)
  const marks = [...log.matchAll(/\n… (\d+) bytes left out …\n/g)]
  const leftOut = marks.reduce((sum, [, bytes]) => sum + Number(bytes), 0)
  assert.ok(marks.length > 0 && Math.abs(size + leftOut - 100_000_000) < 1000, `${size} + ${leftOut}`)
  assert.match(log, /^\[shoal\].*\n.*\nfirst\n01234/)
  assert.match(log, /0123456789abcdef\n\w*\nlast\n\[shoal\] built/)
})

test('secrets are masked in log and message', async () => {
  const env = [
    { name: 'NPM_TOKEN', value: 'tok-12345' },
    { name: 'MODE', value: 'visible' },
  ]
  const source = { username: 'someone', password: 'hunter22' }
  const script = 'printf "t=%s m=%s tok-1" "$NPM_TOKEN" "$MODE"; sleep 0.2; echo 2345 hunter22; exit 1'
  const job = await fixture.queue(script, { env, source })
  const message = await fails(Promise.resolve(job), 'BuildFailed')
  const log = await fixture.log(job.name)
  for (const text of [message, log]) {
    assert.match(text, 't=*** m=visible *** ***')
    assert.not.match(text, /tok-12345|hunter22/)
  }
})

test('a job that is cancelled ends at once', async () => {
  const { name } = await fixture.queue('sleep 98763')
  await until('the build runs', () => running('sleep 98763'))
  await cancel(fixture.database, (await fixture.job(name)).id)
  const job = await fixture.reaches(name, ['Cancelled', 'Failed'], 5000)
  assert.is(job.phase, 'Cancelled')
  assert.is(running('sleep 98763'), 0)
})

test('the log comes while the build runs', async () => {
  const go = join(await fixture.shared('go'), 'file')
  const job = await fixture.queue(`echo begun; until [ -e ${go} ]; do sleep 0.1; done; ${echo}`)
  await until('the log shows it', async () => (await fixture.log(job.name)).includes('begun\n'))
  assert.is((await fixture.job(job.name)).phase, 'Running')
  await writeFile(go, '')
  await builds(Promise.resolve(job))
})

test('calls that fail, or whose answer is lost, are repeated', async () => {
  fixture.away.set('upload/start', 1).set('upload/parts', 1).set('finish', 2).set('log', 2)
  for (const path of ['claim', 'upload/complete', 'finish']) fixture.unanswered.set(path, 1)
  const job = await fixture.queue(`echo hello; ${echo}`)
  const { blob } = await builds(Promise.resolve(job))
  assert.is(blob, '1\n')
  assert.is((await fixture.job(job.name)).attempt, 1)
  assert.match(await fixture.log(job.name), /\nhello\n/)
})

test('a probe with the secret is told what is held, any other nothing', async () => {
  const { name } = await fixture.queue('sleep 98764')
  await until('the build runs', () => running('sleep 98764'))
  const asked = fixture.asked.findLast(({ path }) => path === 'claim')
  const { probeUrl, probeSecret, worker: workerName } = claimRequest.parse(asked?.body)
  const probe = (secret: string) => request(`${probeUrl}/probe`, { headers: { authorization: `Bearer ${secret}` } })
  const refused = await probe('x'.repeat(probeSecret.length))
  assert.is(refused.statusCode, 401)
  await refused.body.dump()
  const answer = probeAnswer.parse(await (await probe(probeSecret)).body.json())
  const [lease] = await fixture.database.query<{ token: string; pollId: number }>(
    'SELECT token, poll_id AS pollId FROM slot JOIN worker ON worker.id = slot.worker WHERE worker.name = ?',
    [workerName],
  )
  assert.equal(answer, {
    worker: workerName,
    lastPollId: lease?.pollId,
    held: [{ jobId: (await fixture.job(name)).id, token: lease?.token }],
  })
  await cancel(fixture.database, (await fixture.job(name)).id)
  await fixture.reaches(name, ['Cancelled'])
})

test('nothing of jobs that ended is left in the workspace', async () => {
  const [own = ''] = (await readdir(join(fixture.dir, 'work'))).filter((name) => name.startsWith('shoal-'))
  await until('it is empty', async () => (await readdir(join(fixture.dir, 'work', own))).join() === 'owner.json')
})

test.run()
