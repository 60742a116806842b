import { type ChildProcess, spawn } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { existsSync } from 'node:fs'
import { access, chmod, mkdir, readFile, stat, symlink, writeFile } from 'node:fs/promises'
import { delimiter, join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { parseTorrent } from '../../api/torrent.ts'
import { type TemporaryDir, temporaryDir } from '../../hack/parts/process.ts'

const test = suite('shoal swarm')
const main = join(import.meta.dirname, '../../main.ts')
let dir: TemporaryDir
const running: ChildProcess[] = []

test.before.each(async () => {
  dir = await temporaryDir('shoal-open')
})
test.after.each(async () => {
  for (const child of running.splice(0)) {
    const ended = new Promise((resolve) => child.once('exit', resolve))
    if (child.exitCode === null && child.signalCode === null && child.kill('SIGKILL')) await ended
  }
  await dir[Symbol.asyncDispose]()
})

interface Ended {
  code: number | null
  stdout: string
  stderr: string
}

interface Running {
  child: ChildProcess
  ended: Promise<Ended>
  /** The first match in what it says on either stream. */
  says(pattern: RegExp): Promise<RegExpMatchArray>
}

function run(command: string, args: string[]): Running {
  const child = spawn(command, args, { stdio: ['ignore', 'pipe', 'pipe'] })
  running.push(child)
  const out = { stdout: '', stderr: '' }
  const listeners = new Set<() => void>()
  for (const stream of ['stdout', 'stderr'] as const)
    child[stream]?.on('data', (chunk: Buffer) => {
      out[stream] += chunk
      for (const listener of listeners) listener()
    })
  const ended = new Promise<Ended>((resolve, reject) => {
    child.once('error', reject)
    child.once('close', (code) => resolve({ code, ...out }))
  })
  const says = (pattern: RegExp) =>
    new Promise<RegExpMatchArray>((resolve, reject) => {
      const look = () => {
        const match = pattern.exec(out.stdout + out.stderr)
        if (match) resolve(match)
      }
      listeners.add(look)
      look()
      void ended.then(() => reject(new Error(`it ended without ${pattern}: ${out.stdout}${out.stderr}`)), reject)
    })
  return { child, ended, says }
}
const shoal = (...args: string[]) => run(process.execPath, [main, 'swarm', ...args])
const anyPort = ['--listen', '127.0.0.1:0']

/** A tracker, a folder of random files, its torrent, and where its bytes are. */
async function prepare(o: { link: boolean } = { link: true }) {
  const tracker = shoal('tracker', ...anyPort)
  const [, url = ''] = await tracker.says(/(http:\S+\/announce)/)
  const source = join(dir.path, 'source')
  await mkdir(join(source, 'tree/bin'), { recursive: true })
  const big = randomBytes(9_000_001)
  await writeFile(join(source, 'tree/bin/server'), big)
  await chmod(join(source, 'tree/bin/server'), 0o755)
  await writeFile(join(source, 'tree/small'), 'small')
  if (o.link) await symlink('bin/server', join(source, 'tree/link'))
  const torrent = join(dir.path, 'tree.torrent')
  const made = await shoal('create', join(source, 'tree'), '-o', torrent, '--piece-length', '128K', '--announce', url)
    .ended
  assert.is(made.code, 0, made.stderr)
  const arrived = async (at: string) => {
    assert.ok(big.equals(await readFile(join(at, 'tree/bin/server'))))
    assert.is(await readFile(join(at, 'tree/small'), 'utf8'), 'small')
  }
  return { tracker, url, source, torrent, arrived }
}

const seedOf = async (torrent: string, source: string) => {
  const seed = shoal('seed', torrent, '--dir', source, ...anyPort)
  await seed.says(/seeding/)
  return seed
}

test('create, tracker, seed and get; get says when it is done and ends, modes and links as they were', async () => {
  const { source, torrent, arrived } = await prepare()
  await seedOf(torrent, source)
  const to = join(dir.path, 'to')
  const done = join(dir.path, 'done')
  const { code, stdout, stderr } = await shoal('get', torrent, '--dir', to, ...anyPort, '--done', done, '--json').ended
  assert.is(code, 0, stderr)
  const last = JSON.parse(stdout.trim().split('\n').at(-1) ?? '')
  assert.is(last.done, true)
  assert.is(last.downloadedFromPeersBytes, parseTorrent(await readFile(torrent)).sizeBytes)
  await access(done)
  await arrived(to)
  await arrived(to)
  assert.is((await stat(join(to, 'tree/bin/server'))).mode & 0o777, 0o755)
  assert.ok((await readFile(join(to, 'tree/link'))).length > 5)
  assert.not.ok(existsSync(join(to, `.${parseTorrent(await readFile(torrent)).infoHash}.shoal`)), 'no state is left')
})

test('a get that was stopped goes on where it was', async () => {
  const { source, torrent, arrived } = await prepare()
  const to = join(dir.path, 'to')
  const first = shoal('get', torrent, '--dir', to, ...anyPort, '--json')
  await first.says(/"done":false/)
  first.child.kill('SIGTERM')
  const stopped = await first.ended
  assert.is(stopped.code, 130)
  assert.match(stopped.stderr, /goes on from there/)
  await seedOf(torrent, source)
  assert.is((await shoal('get', torrent, '--dir', to, ...anyPort).ended).code, 0)
  await arrived(to)
  // all there: nothing is fetched, though nobody seeds
  for (const child of running) child.kill('SIGKILL')
  const again = await shoal('get', torrent, '--dir', to, ...anyPort, '--json').ended
  assert.is(JSON.parse(again.stdout.trim().split('\n').at(-1) ?? '').downloadedFromPeersBytes, 0)
})

test('what is wrong is said in a line, and nothing is lost', async () => {
  const { source, torrent, tracker } = await prepare()
  const fails = async (reason: RegExp, ...args: string[]) => {
    const { code, stderr } = await shoal(...args).ended
    assert.is(code, 1, stderr)
    assert.match(stderr, reason)
    assert.not.match(stderr, /\n\s+at /, 'no stack')
  }
  await fails(/nothing at .*absent/, 'create', join(dir.path, 'absent'), '-o', join(dir.path, 'x'))
  const before = await readFile(torrent)
  await fails(/there already/, 'create', source, '-o', torrent)
  assert.ok(before.equals(await readFile(torrent)))
  await fails(/piece length/, 'create', source, '-o', join(dir.path, 'x'), '--piece-length', '1000')
  await fails(/IP:PORT/, 'seed', torrent, '--dir', source, '--listen', 'here')
  await fails(/can't be read/, 'seed', join(dir.path, 'absent'), '--dir', source, ...anyPort)
  await fails(/refused: not bencoded/, 'get', main, '--dir', source, ...anyPort)
  await fails(/no file .*server/, 'seed', torrent, '--dir', join(dir.path, 'elsewhere'), ...anyPort)
  await fails(/http: URL/, 'get', torrent, '--dir', join(dir.path, 'y'), ...anyPort, '--tracker', 'udp://x')
  await writeFile(join(source, 'tree/small'), 'SMALL')
  await fails(/1 of \d+ pieces .* not what/, 'seed', torrent, '--dir', source, ...anyPort)
  tracker.child.kill('SIGTERM')
  assert.is((await tracker.ended).code, 0)
})

/** Other clients, as far as they are installed. */
const inPath = (name: string) =>
  (process.env.PATH ?? '').split(delimiter).some((folder) => existsSync(join(folder, name)))

function aria2(torrent: string, at: string, ...more: string[]): Running {
  return run('aria2c', [
    ...[`--dir=${at}`, '--enable-dht=false', '--bt-enable-lpd=false', '--enable-peer-exchange=false'],
    ...['--listen-port=20000-60000', '--allow-overwrite=true', '--file-allocation=none', '--summary-interval=0'],
    ...['--bt-tracker-interval=1', ...more, torrent],
  ])
}

const libtorrentScript = `
import libtorrent as lt, sys, time
torrent, at, seed = sys.argv[1:4]
s = lt.session({'listen_interfaces': '127.0.0.1:0', 'enable_dht': False, 'enable_lsd': False, 'enable_upnp': False,
  'enable_natpmp': False, 'in_enc_policy': 1, 'out_enc_policy': 1, 'allow_multiple_connections_per_ip': True})
h = s.add_torrent({'ti': lt.torrent_info(torrent), 'save_path': at})
while not h.status().is_seeding: time.sleep(0.05)
print('complete', flush=True)
while seed == 'seed': time.sleep(1)
`
const python = '/usr/bin/python3'
const libtorrent = (torrent: string, at: string, mode: 'seed' | 'leech') =>
  run(python, ['-c', libtorrentScript, torrent, at, mode])
const haveLibtorrent = () =>
  existsSync(python)
    ? run(python, ['-c', 'import libtorrent']).ended.then(
        ({ code }) => code === 0,
        () => false,
      )
    : Promise.resolve(false)

if (inPath('aria2c')) {
  test('aria2 downloads from us, by our tracker', async () => {
    const { source, torrent, arrived } = await prepare()
    await seedOf(torrent, source)
    const to = join(dir.path, 'aria2')
    const { code, stdout } = await aria2(torrent, to, '--seed-time=0').ended
    assert.is(code, 0, stdout)
    await arrived(to)
  })

  test('we download from aria2, by our tracker', async () => {
    // for it a link is an empty file, which it opens for writing
    const { source, torrent, arrived } = await prepare({ link: false })
    aria2(torrent, source, '--check-integrity=true', '--seed-ratio=0.0')
    const to = join(dir.path, 'to')
    const { code, stderr } = await shoal('get', torrent, '--dir', to, ...anyPort).ended
    assert.is(code, 0, stderr)
    await arrived(to)
  })
} else console.log('skipped: aria2 is not installed')

if (await haveLibtorrent()) {
  test('libtorrent downloads from us, by our tracker', async () => {
    const { source, torrent, arrived } = await prepare()
    await seedOf(torrent, source)
    const to = join(dir.path, 'libtorrent')
    await libtorrent(torrent, to, 'leech').says(/complete/)
    await arrived(to)
  })

  test('we download from libtorrent, by our tracker', async () => {
    const { source, torrent, arrived } = await prepare()
    await libtorrent(torrent, source, 'seed').says(/complete/)
    const to = join(dir.path, 'to')
    const { code, stderr } = await shoal('get', torrent, '--dir', to, ...anyPort).ended
    assert.is(code, 0, stderr)
    await arrived(to)
  })
} else console.log('skipped: libtorrent is not installed')

test.run()
