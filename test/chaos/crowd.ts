import { createHash, randomBytes } from 'node:crypto'
import { createReadStream } from 'node:fs'
import { cp, mkdir, open, readFile, utimes, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { Release } from '../../agent/releases.ts'
import { parseDescriptor } from '../../api/descriptor.ts'
import { hashOutput } from '../../artifacts/hashOutput.ts'
import { Store, type StoreOptions } from '../../artifacts/store.ts'
import { random } from '../../hack/bench/queue/day.ts'
import { startDatabase } from '../../hack/parts/database.ts'
import { freePort, type Program, startProgram, temporaryDir, until } from '../../hack/parts/process.ts'
import { startStore } from '../../hack/parts/store.ts'
import type { Template } from '../../rollout/envelope.ts'
import { systemClock as clock } from '../../runtime/clock.ts'
import { Database } from '../../runtime/sql.ts'
import { PieceBuffers } from '../../swarm/buffers.ts'
import { Hasher } from '../../swarm/hasher.ts'
import { PieceStore } from '../../swarm/store.ts'

/** What the processes of a crowd are told in a file. */
export interface CrowdFiles {
  artifact: Template['artifact']
  descriptorFile: string
  store: StoreOptions
}

export interface CrowdOptions {
  /** The same seed gives the same faults at the same times; what they meet is up to the machine. */
  seed: number
  machines: number
  sizeBytes: number
  uploadBytesPerSecond: number
  /** How long faults go on. */
  faultsMs: number
}

export interface CrowdResult {
  /** Machines that were not left dead: each has all of it, and right. */
  survivors: number
  happened: Map<string, number>
  /** From the end of the faults to the last survivor's last byte; of the one that everyone has banned apart. */
  convergedMs: number
  corruptMs: number
}

const MAX_LOST = 3
/** A lease of the dead, an announce, a peer's silence, and the bytes themselves. */
const CONVERGE_MS = 120_000
const CORRUPTS = 0.03
const BUCKET = 'region'

/**
 * Fetches an artifact by processes that are killed and frozen, while tracker, bucket and database come and go; one of the
 * machines sends wrong bytes, and one says it has everything, which rotted on its disk. @throws when a survivor does
 * not end with the right bytes.
 */
export async function runCrowd(o: CrowdOptions): Promise<CrowdResult> {
  await using stack = new AsyncDisposableStack()
  const { path: dir } = stack.use(await temporaryDir('shoal-crowd'))
  const [database, bucket] = await Promise.all([startDatabase({ own: true }), startStore()])
  stack.use(database)
  stack.use(bucket)
  const url = await database.createSchema('fleet')
  {
    await using migrated = new Database(url)
    await migrated.migrate(join(import.meta.dirname, '../../fleet/migrations'))
  }
  const next = random(o.seed)
  const upTo = (most: number) => Math.floor(next() * most)

  const source = join(dir, 'build')
  const files = await describe(source, dir, { sizeBytes: o.sizeBytes, store: { ...bucket, bucket: BUCKET } })
  await bucket.createBucket(BUCKET)
  await new Store(files.store).put(files.artifact.key, await readFile(join(source, 'app')))
  const filesFile = join(dir, 'files.json')
  await writeFile(filesFile, JSON.stringify(files))

  const start = (script: string, name: string, env: Record<string, string>) =>
    stack.use(
      startProgram(process.execPath, [join(import.meta.dirname, script)], {
        ...{ name, logFile: join(dir, `${name}.log`), env: { CHAOS_FILES: filesFile, ...env } },
      }),
    )
  const ports = [await freePort(), await freePort()]
  const startTracker = (port: number) =>
    start('tracker.ts', `tracker-${port}`, { CHAOS_DATABASE: url, CHAOS_PORT: String(port) })
  const trackers = ports.map(startTracker)
  const machineDir = (at: number) => join(dir, `m${at}`)
  const [corrupt, rotten] = [0, 1]
  const startMachine = (at: number) =>
    start('machine.ts', `m${at}`, {
      CHAOS_NAME: `m${at}`,
      CHAOS_DIR: machineDir(at),
      CHAOS_TRACKERS: ports.map((port) => `http://127.0.0.1:${port}`).join(','),
      CHAOS_UPLOAD: String(o.uploadBytesPerSecond),
      CHAOS_CORRUPTS: String(at === corrupt ? CORRUPTS : 0),
    })
  for (let at = 0; at < o.machines; at++) await mkdir(join(machineDir(at), 'releases'), { recursive: true })
  const releaseOf = (at: number) => new Release(join(machineDir(at), 'releases'), files.artifact)
  await plantRot(releaseOf(rotten), source, await readFile(files.descriptorFile))
  const machines: (Program | undefined)[] = Array.from({ length: o.machines }, (_, at) => startMachine(at))

  /** Not the rotten one: as long as nobody asks it, it does not look. */
  const mayBeLost = () => machines.flatMap((machine, at) => (machine && at !== rotten ? [at] : []))
  const anyMachine = () => {
    const living = mayBeLost()
    return living[upTo(living.length)] as number
  }
  const later: Promise<void>[] = []
  const after = (mostMs: number, then: () => unknown) => {
    const ms = 200 + upTo(mostMs)
    later.push(clock.sleep(ms).then(async () => void (await then())))
  }
  const mayLose = () => machines.filter((machine) => !machine).length < MAX_LOST
  const faults: Record<string, () => Promise<void>> = {
    'kill a machine': async () => {
      const at = anyMachine()
      await machines[at]?.kill()
      after(3000, () => {
        machines[at] = startMachine(at)
      })
    },
    'lose a machine': async () => {
      const at = anyMachine()
      if (!mayLose()) return
      await machines[at]?.kill()
      machines[at] = undefined
    },
    'lose power of a machine': async () => {
      const at = anyMachine()
      if (!mayLose()) return
      await machines[at]?.pause()
      machines[at] = undefined
    },
    'freeze a machine': async () => {
      const machine = machines[anyMachine()]
      await machine?.pause()
      after(6000, () => machine?.resume())
    },
    'kill a tracker': async () => {
      const at = upTo(trackers.length)
      await trackers[at]?.kill()
      after(3000, () => {
        trackers[at] = startTracker(ports[at] as number)
      })
    },
    'freeze a tracker': async () => {
      const tracker = trackers[upTo(trackers.length)]
      await tracker?.pause()
      after(4000, () => tracker?.resume())
    },
  }
  /** What there is one of goes on before it is stopped again. */
  const alone: Record<string, () => Promise<void>> = {
    'kill the bucket': async () => {
      await bucket.kill()
      await clock.sleep(upTo(3000))
      await bucket.start()
    },
    'silence the bucket': async () => {
      await bucket.pause()
      await clock.sleep(upTo(4000))
      bucket.resume()
    },
    'silence the database': async () => {
      await database.pause()
      await clock.sleep(upTo(3000))
      database.resume()
    },
  }
  const happened = new Map<string, number>()
  const note = (fault: string) => happened.set(fault, (happened.get(fault) ?? 0) + 1)
  const beganMs = clock.monotonic()
  const going = () => clock.monotonic() - beganMs < o.faultsMs
  const alongside = (async () => {
    const names = Object.keys(alone)
    while (going()) {
      await clock.sleep(1000 + upTo(3000))
      const fault = names[upTo(names.length)] as string
      note(fault)
      await alone[fault]?.()
    }
  })()
  const names = [...Object.keys(faults), 'kill a machine', 'freeze a machine']
  while (going()) {
    await clock.sleep(200 + upTo(1500))
    const fault = names[upTo(names.length)] as string
    note(fault)
    await faults[fault]?.()
  }
  await alongside
  await Promise.all(later)

  const quietMs = clock.monotonic()
  const survivors = machines.flatMap((machine, at) => (machine && at !== rotten ? [{ at, machine }] : []))
  const wholeMs = await Promise.all(
    survivors.map(async ({ at, machine }) => {
      const options = { timeoutMs: CONVERGE_MS, intervalMs: 100, unless: machine }
      await until(`m${at} has everything`, () => releaseOf(at).complete, options)
      return { at, ms: clock.monotonic() - quietMs }
    }),
  )
  const msOf = (which: (at: number) => boolean) =>
    Math.max(0, ...wholeMs.filter(({ at }) => which(at)).map(({ ms }) => ms))
  const wanted = await digestOf(join(source, 'app'))
  for (const { at } of survivors)
    if ((await digestOf(join(releaseOf(at).files, 'app'))) !== wanted) throw new Error(`m${at} has wrong bytes`)
  return {
    ...{ survivors: survivors.length, happened },
    convergedMs: msOf((at) => at !== corrupt),
    corruptMs: msOf((at) => at === corrupt),
  }
}

/** A build of random bytes, and what is to be known of it. */
async function describe(
  source: string,
  dir: string,
  o: { sizeBytes: number; store: StoreOptions },
): Promise<CrowdFiles> {
  await mkdir(source)
  await writeFile(join(source, 'app'), randomBytes(o.sizeBytes))
  const { digest, sizeBytes, infoHash, descriptorDigest, descriptor } = await hashOutput(source, { name: 'app' })
  const descriptorFile = join(dir, 'descriptor')
  await writeFile(descriptorFile, descriptor)
  return {
    artifact: { name: 'app', digest, sizeBytes, key: 'team/app/1', infoHash, descriptorDigest },
    descriptorFile,
    store: o.store,
  }
}

/** A release that is complete by all that is written about it, with a byte wrong in every second piece. */
async function plantRot(release: Release, source: string, descriptor: Uint8Array): Promise<void> {
  const torrent = parseDescriptor(descriptor)
  await release.descriptor(async () => descriptor)
  await cp(source, release.files, { recursive: true })
  const file = join(release.files, 'app')
  await utimes(file, 1_000_000_000, 1_000_000_000)
  {
    await using hasher = new Hasher(1)
    const options = { torrent, dir: release.files, stateFile: release.stateFile, hasher }
    await using _noted = await PieceStore.open({ ...options, mode: 'release', buffers: new PieceBuffers(1 << 20) })
  }
  {
    await using handle = await open(file, 'r+')
    for (let at = 0; at < torrent.sizeBytes; at += 2 * torrent.pieceLengthBytes)
      await handle.write(randomBytes(16), 0, 16, at)
  }
  await utimes(file, 1_000_000_000, 1_000_000_000)
  await release.finish()
}

async function digestOf(file: string): Promise<string> {
  const digest = createHash('sha256')
  for await (const chunk of createReadStream(file)) digest.update(chunk as Buffer)
  return digest.digest('hex')
}
