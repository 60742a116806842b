import { hash, randomBytes } from 'node:crypto'
import { mkdtemp, open, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { ShoalError } from '../api/errors.ts'
import { startStore } from '../hack/parts/store.ts'
import { checkReplica, type ExpectedBlob } from './check.ts'
import { hashOutput } from './hashOutput.ts'
import { descriptorKey } from './key.ts'
import { receiveUpload } from './receive.ts'
import { type CopySource, replicate } from './replicate.ts'
import { Store } from './store.ts'
import { uploadOutput } from './upload.ts'

const dir = await mkdtemp(join(tmpdir(), 'shoal-replicate-'))
const servers = await Promise.all([startStore(), startStore()])
const [homeServer, farServer] = servers
const home = new Store({ ...homeServer, bucket: 'home' })
const far = new Store({ ...farServer, bucket: 'far', timeoutMs: 3000 })
await Promise.all([home.createBucket(), far.createBucket()])
const never = new AbortController().signal

const test = suite('replication')
test.after(async () => {
  home[Symbol.dispose]()
  far[Symbol.dispose]()
  await Promise.all(servers.map((server) => server[Symbol.asyncDispose]()))
  await rm(dir, { recursive: true, force: true })
})

async function publish(key: string, bytes: Uint8Array): Promise<{ blob: ExpectedBlob; source: CopySource }> {
  const file = join(dir, 'server')
  await writeFile(file, bytes)
  const output = await hashOutput(file, { name: 'web' })
  let facts: Awaited<ReturnType<typeof receiveUpload>> | undefined
  await uploadOutput(
    output,
    {
      start: async () => ({ uploadId: await home.uploads.start(key), partSizeBytes: output.partSizeBytes }),
      parts: (uploadId, parts) =>
        Promise.all(
          parts.map(async (part) => ({
            number: part.number,
            ...(await home.uploads.presignPart({ key, uploadId, ...part })),
          })),
        ),
      complete: async (uploadId, { descriptor, ...rest }) => {
        facts = await receiveUpload(home, { key, uploadId, ...rest, descriptor: Buffer.from(descriptor, 'base64') })
      },
    },
    { signal: never },
  )
  if (!facts) throw new Error('not received')
  const blob = { ...facts, descriptorKey: descriptorKey(key) }
  const [{ url: blobUrl }, { url: descriptorUrl }] = await Promise.all([
    home.presignGet(key, 600),
    home.presignGet(descriptorKey(key), 600),
  ])
  return { blob, source: { blobUrl, descriptorUrl } }
}

async function code(promise: Promise<unknown>): Promise<string> {
  try {
    await promise
    return 'none'
  } catch (error) {
    return error instanceof ShoalError ? error.code : String(error)
  }
}

async function flipByte(dataDir: string, path: string, at: number): Promise<void> {
  await using file = await open(join(dataDir, path), 'r+')
  const byte = Buffer.alloc(1)
  await file.read(byte, 0, 1, at)
  byte[0] = (byte[0] ?? 0) ^ 1
  await file.write(byte, 0, 1, at)
}

const allBytes = (blob: ExpectedBlob) => checkReplica(far, blob, { allBytes: true })
const remembered = (blob: ExpectedBlob) => checkReplica(far, blob, { allBytes: false })

test('a blob and its descriptor are copied by URL, read back, and a second copy finds them there', async () => {
  const { blob, source } = await publish('t/a/1', randomBytes(40_000_000))
  const copied: number[] = []
  assert.is((await remembered(blob)).state, 'Missing')
  const outcome = await replicate(far, blob, source, { signal: never, onBytes: (bytes) => copied.push(bytes) })
  assert.equal(outcome, { state: 'Replicated', allBytesRead: true })
  assert.is(copied.at(-1), 40_000_000)
  assert.is((await far.head(blob.key)).checksum, blob.checksum)
  const again: number[] = []
  await replicate(far, blob, source, { signal: never, onBytes: (bytes) => again.push(bytes) })
  assert.equal(again, [40_000_000])
})

test('a copy that was broken off goes on with the parts it has', async () => {
  const { blob, source } = await publish('t/b/1', randomBytes(100_000_000))
  const abort = new AbortController()
  const broken = replicate(far, blob, source, {
    signal: abort.signal,
    parallel: 1,
    onBytes: (bytes) => bytes >= 32 << 20 && abort.abort(new Error('killed')),
  })
  assert.is(await code(broken), 'Error: killed')
  assert.is((await remembered(blob)).state, 'Missing', 'nothing half is visible')
  await farServer.kill()
  await farServer.start()
  const copied: number[] = []
  const outcome = await replicate(far, blob, source, { signal: never, onBytes: (bytes) => copied.push(bytes) })
  assert.is(outcome.state, 'Replicated')
  assert.is(copied[0], 32 << 20)
  assert.equal(await far.uploads.list('t/b/'), [])
})

test('a byte flipped in the bucket is Corrupt once all bytes are read, and replaced', async () => {
  const { blob, source } = await publish('t/c/1', randomBytes(20_000_000))
  await replicate(far, blob, source, { signal: never })
  await flipByte(farServer.dataDir, `far/${blob.key}`, 12_345_678)
  assert.is((await remembered(blob)).state, 'Replicated', 'the store itself does not notice')
  const outcome = await allBytes(blob)
  assert.is(outcome.state, 'Corrupt')
  assert.match(outcome.message ?? '', blob.digest)
  assert.is((await replicate(far, blob, source, { signal: never, replace: true })).state, 'Replicated')
})

test('a copy cut short, an object put over it and another descriptor are Corrupt', async () => {
  const { blob, source } = await publish('t/d/1', randomBytes(1_000_000))
  await replicate(far, blob, source, { signal: never })
  await far.put(blob.descriptorKey, Buffer.from('d4:infod1:ai1eee'))
  assert.is((await allBytes(blob)).state, 'Corrupt')
  await far.put(blob.key, randomBytes(999_999))
  assert.is((await remembered(blob)).state, 'Corrupt')
  assert.is((await replicate(far, blob, source, { signal: never, replace: true })).state, 'Replicated')
})

test('a deleted object, or its descriptor, is Missing; a store that does not answer is Unknown', async () => {
  const { blob, source } = await publish('t/e/1', randomBytes(1_000_000))
  await replicate(far, blob, source, { signal: never })
  await far.delete(blob.descriptorKey)
  assert.is((await remembered(blob)).state, 'Missing')
  await farServer.kill()
  assert.is((await remembered(blob)).state, 'Unknown')
  assert.is(await code(replicate(far, blob, source, { signal: never })), 'StoreUnreachable')
  await farServer.start()
  await far.delete(blob.key)
  assert.is((await allBytes(blob)).state, 'Missing')
})

test('a source with other bytes, or none, gives no copy and is told from our own store', async () => {
  const { blob, source } = await publish('t/f/1', randomBytes(20_000_000))
  await flipByte(homeServer.dataDir, `home/${blob.key}`, 1)
  assert.is(await code(replicate(far, blob, source, { signal: never })), 'ChecksumMismatch')
  assert.equal(await far.uploads.list('t/f/'), [])
  assert.is((await remembered(blob)).state, 'Missing')
  await home.delete(blob.key)
  assert.is(await code(replicate(far, blob, source, { signal: never })), 'Unavailable')
  assert.is((await far.uploads.list('t/f/')).length, 1)
})

test('two replicators copying the same blob at once both end with it', async () => {
  const bytes = randomBytes(60_000_000)
  const { blob, source } = await publish('t/g/1', bytes)
  const outcomes = await Promise.all([1, 2].map(() => replicate(far, blob, source, { signal: never })))
  assert.equal(
    outcomes.map((outcome) => outcome.state),
    ['Replicated', 'Replicated'],
  )
  assert.is((await far.readBack(blob.key)).digest, `sha256:${hash('sha256', bytes)}`)
})

test.run()
