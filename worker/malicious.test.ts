// timeout: 1200 s
import { execFileSync } from 'node:child_process'
import { existsSync, globSync, readdirSync, readFileSync } from 'node:fs'
import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { claimRequest } from '../api/workerApi.ts'
import { type Program, until } from '../hack/parts/process.ts'
import { usableCgroups } from './cgroup.ts'
import { Fixture, running } from './fixture.ts'

/**
 * Build scripts that try what a build must not be able to do, and say what they could. Limits are small, so that the
 * machine they run on takes no harm from them either.
 */
const test = suite('malicious builds')
const settings = {
  SHOAL_MAX_PROCESSES: '100',
  SHOAL_MAX_MEMORY: '256Mi',
  SHOAL_MAX_DISK: '64Mi',
  SHOAL_CACHE_SIZE: '32Mi',
}
/** Root without the rights that manifests/hub/worker.yaml takes away, and cgroups that can't be written to. */
const asInPod = [
  ...['unshare', '--mount', '--', 'sh', '-c'],
  `for at in $(awk '$3 ~ /^cgroup/ { print $2 }' /proc/mounts); do mount -o remount,bind,ro "$at"; done
  exec setpriv --no-new-privs --inh-caps=-all --bounding-set=-all,+setuid,+setgid,+chown,+kill,+dac_override,+fowner -- "$@"`,
  'sh',
]
const ways: [name: string, as: string[]][] = [['as in a pod', asInPod]]
if ((await usableCgroups()).length > 0) ways.unshift(['with cgroups', []])

const fixture = await Fixture.start()
// As a volume of Kubernetes comes.
await fixture.shared('work')
let worker: Program | undefined
let startedAs = ''
test.after(async () => {
  if (process.env.SHOAL_TEST_LOG) console.log(await worker?.log())
  await worker?.stop()
  await fixture[Symbol.asyncDispose]()
})

let started = 0
/** The worker that runs already, when it was started the same way. */
async function start(as: string[] = []): Promise<Program> {
  if (worker?.running && startedAs === as.join()) return worker
  await worker?.stop()
  startedAs = as.join()
  worker = fixture.startWorker(`worker-${++started}`, settings, as)
  return worker
}
const isBuildUid = (uid: number) => uid >= 20_000 && uid < 20_256
const processesOf = (uid: number) =>
  readdirSync('/proc').filter((pid) => {
    const status = /^\d+$/.test(pid) ? read(`/proc/${pid}/status`) : ''
    return new RegExp(`^Uid:\\t${uid}\\t`, 'm').test(status) && !/^State:\t[ZX]/m.test(status)
  })
const read = (path: string) => {
  try {
    return readFileSync(path, 'utf8')
  } catch {
    return ''
  }
}
const isolation = () => claimRequest.parse(fixture.asked.findLast(({ path }) => path === 'claim')?.body).isolation ?? ''
const uidOfBuilds = () => Number(/^uid (\d+)/.exec(isolation())?.[1])

async function ends(script: string, more: Parameters<Fixture['queue']>[1] = {}) {
  const { name } = await fixture.queue(script, more)
  const job = await fixture.reaches(name, ['Failed', 'Replicating'], 40_000)
  return { job, log: (await fixture.log(name)).replaceAll(/^\[shoal\].*\n/gm, '') }
}
/** What a script that tries could do: it prints a line for each. */
async function could(script: string, more: Parameters<Fixture['queue']>[1] = {}): Promise<string[]> {
  const helpers = 'could() { if "$@" >/dev/null 2>&1; then echo "could $*"; fi; }; tell() { echo "$@"; }; set +e\n'
  const { job, log } = await ends(`${helpers}${script}\nmkdir -p out; echo 1 >out/a`, more)
  assert.is(job.phase, 'Replicating', `${job.code} ${job.message}`)
  return log.trim().split('\n')
}
async function limited(script: string, reached: RegExp): Promise<void> {
  const { job } = await ends(script, { timeout: '30s' })
  assert.is(job.code, 'BuildLimit', `${job.phase} ${job.code} ${job.message}`)
  assert.match(job.message ?? '', reached)
  assert.is(processesOf(uidOfBuilds()).length, 0)
}
async function goesOn(): Promise<void> {
  const { job } = await ends('mkdir out; echo 1 >out/a')
  assert.is(job.phase, 'Replicating', `the next job: ${job.message}`)
}

test('no credential can be read', async () => {
  const { pid } = await start()
  const found = await could(
    `could cat build.sh
    could cat ${join(fixture.dir, 'token')}
    for process in /proc/[0-9]*; do
      [ "$process" = "/proc/$$" ] || grep -l SHOAL_ "$process/environ" 2>/dev/null
    done
    could cat /proc/${pid}/environ; could ls /proc/${pid}/fd; could ls /proc/${pid}/cwd/; could head -c 1 /proc/${pid}/mem
    could kill -0 ${pid}
    grep -a hunter2[2] /proc/*/cmdline 2>/dev/null
    could grep -r hunter2[2] .git "$HOME" "$TMPDIR" "$SHOAL_CACHE" ..
    env | grep -E 'mysql:|worker-toke[n]|OUR_OWN'
    grep -E '^(Groups|NoNewPrivs|CapEff|CapPrm):' /proc/self/status`,
    { source: { username: 'someone', password: 'hunter22' } },
  )
  assert.equal(found, [
    'could cat build.sh',
    ...['Groups:\t ', 'CapPrm:\t0000000000000000', 'CapEff:\t0000000000000000', 'NoNewPrivs:\t1'],
  ])
})

test('a worker whose token builds can read does not start', async () => {
  const open = join(fixture.dir, 'open-token')
  await writeFile(open, 'worker-token', { mode: 0o644 })
  await using refused = fixture.startWorker('refused', { ...settings, SHOAL_TOKEN_FILE: open })
  assert.is(await refused.exited, 'code 1')
  assert.match(await refused.log(), /ConfigInvalid.*open-token|open-token.*chmod 400/)
})

test('nothing can be written outside of its folders', async () => {
  await start()
  const work = join(fixture.dir, 'work')
  const first = await could(
    'tell "$SHOAL_CACHE"; tell "$(pwd)"; chmod 777 "$SHOAL_CACHE"; echo mine >"$SHOAL_CACHE/file"',
  )
  const [cache = '', checkout = ''] = first
  assert.match(cache, `${work}/cache/pipeline-`)
  const mirror = globSync(join(work, 'cache/git-*/mirror.git'))[0]
  assert.ok(mirror)
  const tries = [
    cache,
    mirror,
    work,
    join(work, 'cache'),
    `${checkout}/../..`,
    `${checkout}/..`,
    fixture.dir,
    '/',
    '/etc',
    '/usr/bin',
  ]
  const found = await could(
    `could touch here
    for at in ${tries.join(' ')}; do could touch "$at/new"; done
    could ls ${cache}; could cat ${cache}/file; could ls ${work}; could ls ${work}/cache; could ls ${mirror}; could cat ${mirror}/HEAD
    could ls ../..
    could ln ${mirror}/HEAD linked; could ln ${join(fixture.dir, 'token')} linked; could mv ${cache} moved; could mv ${work}/cache ${work}/moved; could rm -rf ${mirror}`,
    { pipeline: 'other' },
  )
  assert.equal(found, ['could touch here'])
  assert.equal(await could('tell "$SHOAL_CACHE"; ls -A "$SHOAL_CACHE"; cat "$SHOAL_CACHE/file"'), [
    cache,
    'file',
    'mine',
  ])
})

test('a build that runs at the same time finds nothing of another', async () => {
  await start()
  const go = join(await fixture.shared('go'), 'go')
  const paths = `${go}.paths`
  const script = `set -- "$(pwd)" "$HOME" "$SHOAL_CACHE"; chmod -R 777 "$@"; echo "$@" >${paths}
    until [ -e ${go} ]; do sleep 0.1; done; ls -A "$SHOAL_CACHE"; mkdir out; echo 1 >out/a`
  const { name } = await fixture.queue(script)
  const others = await until('it runs', () => (existsSync(paths) ? read(paths).trim().split(' ') : undefined))
  await using second = fixture.startWorker('second', settings)
  const tries = others.map((at) => `could ls ${at}; could touch ${at}/new; could cd ${at}`).join('\n')
  assert.equal(await could(`could touch here\n${tries}`, { pipeline: 'other' }), ['could touch here'])
  // Of the same pipeline: a cache of its own, which is empty.
  const [cache, ...rest] = await could('tell "$SHOAL_CACHE"; ls -A "$SHOAL_CACHE"')
  assert.is.not(cache, others[2])
  assert.equal(rest, [])
  await writeFile(go, '')
  assert.is((await fixture.reaches(name, ['Failed', 'Replicating'])).phase, 'Replicating')
  await second.stop()
})

const outlive = (n: number) => `
  setsid nohup sleep ${n} >/dev/null 2>&1 &
  (trap '' TERM HUP INT; setsid sh -c 'trap "" TERM HUP; cd /; (sleep ${n} & sleep ${n}) & exit' & exit)
  env -i setsid sh -c '(cd /; exec sleep ${n}) & exit'
  sleep 0.3`

for (const [way, as] of ways) {
  test(`nothing outlives its timeout, nor its job, ${way}`, async () => {
    await start(as)
    const { job } = await ends(`${outlive(98_651)}; sleep 98651`, { timeout: '2s' })
    assert.is(job.code, 'BuildTimeout', `${job.message}`)
    const { job: built } = await ends(`${outlive(98_651)}; mkdir out; echo 1 >out/a`)
    assert.is(built.phase, 'Replicating', `${built.message}`)
    assert.is(running('sleep 98651'), 0)
    assert.is(processesOf(uidOfBuilds()).length, 0)
    assert.match(
      isolation(),
      as.length === 0
        ? /cgroup v\d: pids 100, memory 256Mi;/
        : /watched: pids 100, memory 256Mi, disk 64Mi; rlimits: nproc,/,
    )
  })

  test(`who forks without end is stopped, ${way}`, async () => {
    await start(as)
    await limited('bomb() { bomb & bomb & :; sleep 60; }; bomb', /limit of 100 processes reached/)
    await goesOn()
  })

  test(`memory ends at the limit, ${way}`, async () => {
    await start(as)
    await limited('tail /dev/zero', /memory limit 256Mi reached/)
    await limited(
      'for n in 1 2 3; do (head -c 150M /dev/zero; sleep 30) | tail -n 1 & done; wait',
      /memory limit 256Mi reached/,
    )
    await goesOn()
  })

  test(`what is left in memory for others is removed, ${way}`, async () => {
    await start(as)
    const { job } = await ends(
      'head -c 1M /dev/zero >/dev/shm/malicious; ipcmk -M 1048576; ipcmk -S 3; ipcmk -Q; mkdir out; echo 1 >out/a',
    )
    assert.is(job.phase, 'Replicating', `${job.message}`)
    const uid = uidOfBuilds()
    assert.ok(isBuildUid(uid))
    assert.not.ok(existsSync('/dev/shm/malicious'))
    for (const table of ['shm', 'sem', 'msg'])
      assert.not.match(read(`/proc/sysvipc/${table}`), new RegExp(`\\s${uid}\\s`))
    await limited(
      'for n in 1 2 3 4 5 6; do head -c 60M /dev/zero >/dev/shm/malicious$n; done; sleep 30',
      /memory limit 256Mi reached/,
    )
    assert.equal(globSync('/dev/shm/malicious*'), [])
  })

  test(`the disk is not filled, ${way}`, async () => {
    await start(as)
    const reached = /disk limit 64Mi reached/
    await limited('yes >one', reached)
    await limited('n=0; while :; do n=$((n + 1)); head -c 1000000 /dev/zero >"many$n" || exit 1; done', reached)
    await limited(
      'for at in "$HOME" "$TMPDIR" "$SHOAL_CACHE" /tmp; do head -c 17M /dev/zero >"$at/malicious"; done; sleep 30',
      reached,
    )
    assert.not.ok(existsSync('/tmp/malicious'))
    await goesOn()
  })
}

test('a cache that is too large is dropped, one that is not is kept', async () => {
  await start()
  const fill = (bytes: string) => could(`head -c ${bytes} /dev/zero >"$SHOAL_CACHE/file"`, { pipeline: 'filler' })
  const kept = () => could('ls "$SHOAL_CACHE"', { pipeline: 'filler' })
  await fill('10M')
  assert.equal(await kept(), ['file'])
  await fill('20M')
  assert.equal(await kept(), [''])
})

test('a commit whose files are more than the disk holds is not checked out', async () => {
  await start()
  const { work } = fixture.repository
  const git = (input: string, ...args: string[]) =>
    execFileSync('git', args, { cwd: work, input, encoding: 'utf8' }).trim()
  // 1024 files of 100 KB, which git has once.
  let it = `100644 blob ${git('x'.repeat(100_000), 'hash-object', '-w', '--stdin')}`
  for (const _ of [1, 2]) {
    const entries = Array.from({ length: 32 }, (_, n) => `${it}\t${n}\n`)
    it = `040000 tree ${git(entries.join(''), 'mktree')}`
  }
  const identity = ['-c', 'user.name=test', '-c', 'user.email=test@example.com']
  const commit = git('', ...identity, 'commit-tree', '-m', 'many', it.split(' ').at(-1) ?? '')
  git('', 'push', '--quiet', 'origin', `${commit}:refs/heads/many`)
  const { job } = await ends('true', { commit })
  assert.is(job.code, 'BuildLimit', `${job.code} ${job.message}`)
  assert.match(job.message ?? '', /^git checkout .*: disk limit 64Mi reached/)
})

test('a worker that was killed leaves nothing once the next has started', async () => {
  const killed = await start()
  await fixture.queue('setsid sleep 98652 & sleep 98652')
  await until('the build runs', () => running('sleep 98652') >= 2, { timeoutMs: 20_000 })
  const cgroups = () => globSync(`/sys/fs/cgroup/{*/,}**/shoal-build-${uid}`)
  const uid = uidOfBuilds()
  await killed.kill()
  await until('the build is gone', () => running('sleep 98652') === 0)
  assert.is(cgroups().length > 0, ways.length === 2)
  await fixture.database.execute('DELETE FROM ready')
  const claims = () => fixture.asked.filter(({ path }) => path === 'claim').length
  const asked = claims()
  await start()
  await until('the next one asks', () => claims() > asked, { timeoutMs: 20_000 })
  await until('the cgroups are gone', () => cgroups().length === 0)
  const folders = readdirSync(join(fixture.dir, 'work')).filter((name) => name.startsWith('shoal-'))
  assert.is(folders.length, 1)
})

if (process.getuid?.() === 0) test.run()
else console.log('only root has builds run as users of their own')
