import { type ChildProcess, spawn } from 'node:child_process'
import { randomFillSync } from 'node:crypto'
import { access, mkdir, open, readFile, rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { encodeTorrent, parseTorrent } from '../../../api/torrent.ts'
import { hashPieces } from '../../../artifacts/hashOutput.ts'
import { serveTracker } from '../../../swarm/trackerServer.ts'
import { temporaryDir } from '../../parts/process.ts'

const CLOCK_TICKS_PER_SECOND = 100
const NAME = 'f.bin'

export interface OneToOne {
  megabytesPerSecond: number
  /** Of both processes, user and system. */
  cpuSecondsPerGigabyte: number
  /** The most that each process held in memory, code and libraries included. */
  peakMegabytes: { seed: number; leech: number }
}

/**
 * One process gives another a file over loopback, on disk and verified, for each client in turn. A client is a program
 * with the verbs `seed TORRENT DIR IP PORT` and `leech TORRENT DIR IP PORT DONE_FILE`.
 */
export async function oneToOne(clients: string[], mebibytes: number): Promise<OneToOne[]> {
  await using dir = await temporaryDir('shoal-bench')
  const source = join(dir.path, 'seed')
  await mkdir(source)
  const sizeBytes = mebibytes * 2 ** 20
  await writeRandom(join(source, NAME), mebibytes)
  const file = { path: NAME, sizeBytes, executable: false }
  const pieceLengthBytes = 2 << 20
  const { pieceSha1 } = await hashPieces([{ ...file, absolute: join(source, NAME) }], pieceLengthBytes, {
    signal: undefined,
  })
  const results: OneToOne[] = []
  for (const [i, client] of clients.entries()) {
    await using tracker = await serveTracker({ host: '127.0.0.1', port: 0 })
    const torrent = join(dir.path, `${i}.torrent`)
    await writeFile(
      torrent,
      encodeTorrent({
        ...{ name: NAME, pieceLengthBytes, files: [file], pieceSha1, pieceSha256: undefined },
        ...{ singleFile: true, private: true, announce: tracker.url },
      }),
    )
    const port = (n: number) => String(20_000 + ((process.pid * 7 + i * 2 + n) % 10_000))
    const to = join(dir.path, `to-${i}`)
    await mkdir(to)
    const seed = start(client, ['seed', torrent, source, '127.0.0.1', port(0)])
    await until(() => hasSeed(tracker.url, torrent))
    const seedCpu = await cpuSeconds(seed)
    const beganMs = performance.now()
    const done = join(dir.path, `done-${i}`)
    const leech = start(client, ['leech', torrent, to, '127.0.0.1', port(1), done])
    await until(() =>
      access(done).then(
        () => true,
        () => false,
      ),
    )
    // A client may say that it is done while its last bytes are in memory alone.
    await toDisk(join(to, NAME))
    const seconds = (performance.now() - beganMs) / 1000
    const cpu = (await cpuSeconds(leech)) + (await cpuSeconds(seed)) - seedCpu
    const peakMegabytes = { seed: await peakOf(seed), leech: await peakOf(leech) }
    for (const child of [leech, seed]) await stop(child)
    await rm(to, { recursive: true })
    results.push({
      megabytesPerSecond: sizeBytes / 1e6 / seconds,
      cpuSecondsPerGigabyte: cpu / (sizeBytes / 1e9),
      peakMegabytes,
    })
  }
  return results
}

async function writeRandom(path: string, mebibytes: number): Promise<void> {
  await using file = await open(path, 'w')
  const block = Buffer.allocUnsafe(1 << 20)
  for (let i = 0; i < mebibytes; i++) await file.write(randomFillSync(block))
}

async function toDisk(path: string): Promise<void> {
  await using file = await open(path)
  await file.datasync()
}

function start(client: string, args: string[]): ChildProcess {
  return spawn(client, args, { stdio: ['ignore', 'ignore', 'inherit'] })
}

async function stop(child: ChildProcess): Promise<void> {
  const ended = new Promise((resolve) => child.once('exit', resolve))
  if (child.exitCode === null && child.kill('SIGKILL')) await ended
}

async function cpuSeconds({ pid }: ChildProcess): Promise<number> {
  const stat = await readFile(`/proc/${pid}/stat`, 'utf8')
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ')
  return (Number(fields[11]) + Number(fields[12])) / CLOCK_TICKS_PER_SECOND
}

/** proc(5): VmHWM, in units of 1024 bytes. */
async function peakOf({ pid }: ChildProcess): Promise<number> {
  const [, kib] = /VmHWM:\s+(\d+)/.exec(await readFile(`/proc/${pid}/status`, 'utf8')) ?? []
  return (Number(kib) * 1024) / 1e6
}

/** Whether someone who has everything has announced it. */
async function hasSeed(url: string, torrent: string): Promise<boolean> {
  const { infoHash } = parseTorrent(await readFile(torrent))
  const escaped = infoHash.replaceAll(/../g, '%$&')
  const response = await fetch(`${url.replace('announce', 'scrape')}?info_hash=${escaped}`)
  return /8:completei1e/.test(await response.text())
}

async function until(condition: () => Promise<boolean>): Promise<void> {
  const deadlineMs = performance.now() + 300_000
  while (!(await condition())) {
    if (performance.now() > deadlineMs) throw new Error('a client did not get there within 300 s')
    await new Promise((resolve) => setTimeout(resolve, 20))
  }
}
