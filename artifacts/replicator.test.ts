import { randomBytes } from 'node:crypto'
import { open } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { encodeDescriptor, parseDescriptor } from '../api/descriptor.ts'
import { Region } from '../api/region.ts'
import type { ReplicaReport } from '../api/regionApi.ts'
import { startDatabase } from '../hack/parts/database.ts'
import { until } from '../hack/parts/process.ts'
import { startStore } from '../hack/parts/store.ts'
import { Database } from '../runtime/sql.ts'
import { Cutter } from './cutter.ts'
import { descriptorKey } from './key.ts'
import { compositeChecksum } from './partSize.ts'
import type { Replica } from './replicaState.ts'
import { Replicas } from './replicas.ts'
import { runReplicator } from './replicator.ts'
import { Store } from './store.ts'

const [database, ...servers] = await Promise.all([startDatabase(), startStore(), startStore()])
const [homeServer, farServer] = servers
const sql = new Database(await database.createSchema('replication'))
await sql.migrate(join(import.meta.dirname, 'migrations'))
const timings = { leaseMs: 1500, checkEveryMs: 300, retryMs: 100, retryMaxMs: 300 }
const replicas = new Replicas(sql, timings)
const home = new Store({ ...homeServer, bucket: 'home' })
const far = new Store({ ...farServer, bucket: 'far' })
await Promise.all([home.createBucket(), far.createBucket()])

const test = suite('a replicator')
test.after(async () => {
  home[Symbol.dispose]()
  far[Symbol.dispose]()
  await sql[Symbol.asyncDispose]()
  await Promise.all([database[Symbol.asyncDispose](), ...servers.map((server) => server[Symbol.asyncDispose]())])
})

/** Puts a blob of one part and its descriptor into the home bucket and the database. */
async function publish(name: string, sizeBytes = 300_000) {
  const key = `tenant/${name}/1`
  const blob = randomBytes(sizeBytes)
  const digests = (algorithm: 'sha1' | 'sha256', everyBytes?: number) => {
    const cutter = new Cutter(everyBytes ? { algorithm, everyBytes } : { algorithm })
    cutter.update(blob)
    return Buffer.from(cutter.finish())
  }
  const pieceLengthBytes = 256 << 10
  const descriptor = encodeDescriptor({
    name: 'web',
    pieceLengthBytes,
    files: [{ path: 'server', sizeBytes, executable: true }],
    pieceSha1: digests('sha1', pieceLengthBytes),
    pieceSha256: digests('sha256', pieceLengthBytes),
  })
  const partSizeBytes = 16 << 20
  const artifact = {
    namespace: 'tenant',
    name,
    key,
    digest: `sha256:${digests('sha256').toString('hex')}`,
    sizeBytes,
    partSizeBytes,
    checksum: compositeChecksum([digests('sha256').toString('base64')]),
    descriptorDigest: parseDescriptor(descriptor).digest,
  }
  await home.put(key, blob)
  await home.put(descriptorKey(key), descriptor)
  await replicas.add(artifact, { home: 'home', others: ['far'] })
  return { ...artifact, blob }
}

interface RunOptions {
  reported?: ReplicaReport[]
  managed?: boolean
}

/** A replicator of region `far`, with a hub that answers from the same database. */
function run(options: RunOptions = {}): AsyncDisposable {
  const stop = new AbortController()
  const managed = options.managed ?? true
  const spec = Region.spec.parse({ store: { endpoint: farServer.endpoint, bucket: 'far' } })
  const done = runReplicator({
    hub: {
      work: async () => ({
        region: { name: 'far', cordoned: false, spec },
        pollAfterMs: 20,
        work: await Promise.all(
          (await replicas.due({ name: 'far', managed, home: false })).map(async (due) => ({
            ...due,
            source: {
              blobUrl: (await home.presignGet(due.key, 60)).url,
              descriptorUrl: (await home.presignGet(due.descriptorKey, 60)).url,
              expiresAt: Date.now() + 60_000,
            },
          })),
        ),
      }),
      report: async (reports) => {
        await replicas.report('far', reports)
        options.reported?.push(...reports)
      },
    },
    credentials: farServer,
    log: { debug: () => {}, info: () => {}, error: (fields) => console.error(fields) },
    signal: stop.signal,
    progressMs: 50,
  })
  return {
    async [Symbol.asyncDispose]() {
      stop.abort()
      await done
    },
  }
}

/** The replica of this artifact, once it is so. */
const replicaOf = (name: string, holds: (replica: Replica) => boolean): Promise<Replica> =>
  until(`the replica of ${name}`, async () => {
    const replica = (await replicas.of({ namespace: 'tenant', name })).find(({ region }) => region === 'far')
    return replica && holds(replica) ? replica : undefined
  })

test('a new artifact is copied, read back in full, and looked at again and again', async () => {
  const { blob } = await publish('a')
  const reported: ReplicaReport[] = []
  await using _ = run({ reported })
  const first = await replicaOf('a', (replica) => replica.state === 'Replicated')
  assert.is(first.copiedBytes, blob.length)
  assert.is(first.allBytesReadAtMs, first.checkedAtMs)
  const later = await replicaOf('a', (replica) => (replica.checkedAtMs ?? 0) > (first.checkedAtMs ?? 0))
  assert.is(later.allBytesReadAtMs, first.allBytesReadAtMs, 'a later look does not read all bytes')
})

test('an object that is deleted is Missing, and copied again', async () => {
  const { key } = await publish('b')
  const reported: ReplicaReport[] = []
  await using _ = run({ reported })
  await replicaOf('b', (replica) => replica.state === 'Replicated')
  await far.delete(key)
  await replicaOf('b', () => reported.some((report) => report.name === 'b' && report.state === 'Missing'))
  await replicaOf('b', (replica) => replica.state === 'Replicated')
  assert.is((await far.head(key)).sizeBytes, 300_000)
})

test('a bucket that replicates by itself is only looked at, and a byte flipped before its first check is Corrupt', async () => {
  const { key, blob } = await publish('c')
  await using _ = run({ managed: false })
  await replicaOf('c', (replica) => replica.state === 'Missing')
  const other = Buffer.from(blob)
  other[1234] = (other[1234] ?? 0) ^ 1
  await far.put(key, blob)
  await using file = await open(join(farServer.dataDir, 'far', key), 'r+')
  await file.write(other, 1234, 1, 1234)
  await far.put(descriptorKey(key), await home.readAll(descriptorKey(key), 1 << 20))
  const replica = await replicaOf('c', ({ state }) => state === 'Corrupt')
  assert.match(replica.message ?? '', 'bytes are sha256:')
  await file.write(blob, 1234, 1, 1234)
  await replicaOf('c', ({ state }) => state === 'Replicated')
})

test('a store that is away makes its replicas Unknown; when it is back all their bytes are read', async () => {
  await publish('d')
  await using _ = run()
  const before = await replicaOf('d', (replica) => replica.state === 'Replicated')
  await farServer.kill()
  const away = await replicaOf('d', (replica) => replica.state === 'Unknown')
  assert.match(away.message ?? '', 'does not answer')
  await farServer.start()
  const after = await replicaOf('d', (replica) => replica.state === 'Replicated')
  assert.ok((after.allBytesReadAtMs ?? 0) > (before.allBytesReadAtMs ?? 0))
})

test('a task of a replicator that died is given out again, and one that goes on is not', async () => {
  await publish('e')
  const region = { name: 'far', managed: true, home: false }
  const mine = async () => (await replicas.due(region)).filter((due) => due.name === 'e')
  assert.is((await mine())[0]?.task, 'Copy')
  const progress = { namespace: 'tenant', name: 'e', copiedBytes: 1, allBytesRead: false, inProgress: true }
  const startedMs = Date.now()
  while (Date.now() - startedMs < timings.leaseMs + 300) {
    await replicas.report('far', [{ ...progress, state: 'Copying' }])
    assert.equal(await mine(), [])
    await delay(50)
  }
  await replicaOf('e', (replica) => replica.state === 'Copying' && replica.copiedBytes === 1)
  const silentMs = Date.now()
  while ((await mine()).length === 0) await delay(20)
  assert.ok(Date.now() - silentMs > timings.leaseMs / 2)
})

test('a region’s word alone makes no replica: Replicated without all bytes read asks for them', async () => {
  await publish('f')
  const report = { namespace: 'tenant', name: 'f', allBytesRead: false, inProgress: false }
  await replicas.report('far', [{ ...report, state: 'Replicated' }])
  await replicaOf('f', (replica) => replica.state === 'Pending')
  await replicas.report('elsewhere', [{ ...report, state: 'Replicated', allBytesRead: true }])
  assert.equal(
    (await replicas.of({ namespace: 'tenant', name: 'f' })).map((replica) => replica.region),
    ['far', 'home'],
  )
})

test('the home region’s copy counts at once and is read once more by its own region', async () => {
  const artifact = await publish('g')
  const due = await replicas.due({ name: 'home', managed: true, home: true })
  const mine = due.find(({ name }) => name === 'g')
  assert.is(mine?.state, 'Replicated')
  assert.is(mine?.task, 'CheckAllBytes')
  await replicas.add(artifact, { home: 'home', others: ['far'] })
  assert.is((await replicas.of(artifact)).length, 2, 'adding again changes nothing')
  assert.ok((await replicas.changed(60_000)).some(({ name }) => name === 'g'))
  await replicas.contact('home')
  assert.ok((await replicas.silence()).has('home'))
  await replicas.remove(artifact)
  assert.equal(await replicas.of(artifact), [])
})

test.run()
