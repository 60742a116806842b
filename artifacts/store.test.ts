import { hash, randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { createServer, type IncomingMessage, request } from 'node:http'
import type { AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { buffer } from 'node:stream/consumers'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { ShoalError } from '../api/errors.ts'
import { startStore } from '../hack/parts/store.ts'
import { hashOutput } from './hashOutput.ts'
import { descriptorKey } from './key.ts'
import { compositeChecksum } from './partSize.ts'
import { type ReceivedUpload, receiveUpload } from './receive.ts'
import { Store } from './store.ts'
import { sweepUploads } from './sweep.ts'
import { putPart } from './transfer.ts'
import { type UploadCalls, uploadOutput } from './upload.ts'

const server = await startStore()
const store = new Store({ ...server, bucket: 'home', timeoutMs: 5000 })
await store.createBucket()
await store.createBucket()
const dir = await mkdtemp(join(tmpdir(), 'shoal-upload-'))
const never = new AbortController().signal

const test = suite('a store')
test.after(async () => {
  store[Symbol.dispose]()
  await server[Symbol.asyncDispose]()
  await rm(dir, { recursive: true, force: true })
})

async function code(promise: Promise<unknown>): Promise<string> {
  try {
    await promise
    return 'none'
  } catch (error) {
    return error instanceof ShoalError ? error.code : String(error)
  }
}

/** What the hub's routes do, without the network between. */
function hubCalls(key: string, received: Partial<ReceivedUpload> = {}) {
  const calls: UploadCalls & { facts?: Awaited<ReturnType<typeof receiveUpload>>; last?: ReceivedUpload } = {
    start: async () => ({ uploadId: await store.uploads.start(key), partSizeBytes: 16 << 20 }),
    parts: (uploadId, parts) =>
      Promise.all(
        parts.map(async (part) => ({
          number: part.number,
          ...(await store.uploads.presignPart({ key, uploadId, ...part })),
        })),
      ),
    complete: async (uploadId, { descriptor, ...facts }) => {
      calls.last = { key, uploadId, ...facts, descriptor: Buffer.from(descriptor, 'base64'), ...received }
      calls.facts = await receiveUpload(store, calls.last)
    },
  }
  return calls
}

test('60 MB go up by presigned parts, are read back, and the call may be repeated', async () => {
  const blob = randomBytes(60_000_000)
  await writeFile(join(dir, 'server'), blob)
  const output = await hashOutput(join(dir, 'server'), { name: 'web' })
  const calls = hubCalls('tenant/web-1/3-abc')
  const sent: number[] = []
  await uploadOutput(output, calls, { signal: never, onBytes: (bytes) => sent.push(bytes) })
  assert.is(sent.at(-1), blob.length)
  assert.is(calls.facts?.digest, `sha256:${hash('sha256', blob)}`)
  assert.is(calls.facts?.descriptorDigest, output.descriptorDigest)
  const head = await store.head('tenant/web-1/3-abc')
  assert.is(head.sizeBytes, blob.length)
  assert.is(head.checksum, output.checksum)
  assert.equal(await receiveUpload(store, calls.last as ReceivedUpload), calls.facts)
  const descriptor = await store.readAll(descriptorKey('tenant/web-1/3-abc'), 1 << 20)
  assert.equal(Buffer.from(descriptor), Buffer.from(output.descriptor))
})

test('a part with other bytes than its URL was signed for is refused', async () => {
  const uploadId = await store.uploads.start('wrong')
  const good = randomBytes(1000)
  const sha256 = hash('sha256', good, 'base64')
  const presigned = await store.uploads.presignPart({ key: 'wrong', uploadId, number: 1, sizeBytes: 1000, sha256 })
  assert.is(await code(putPart(presigned, randomBytes(1000), never)), 'ChecksumMismatch')
  const other = randomBytes(1000)
  const headers = { ...presigned.headers, 'x-amz-checksum-sha256': hash('sha256', other, 'base64') }
  assert.is(
    await code(putPart({ url: presigned.url, headers }, other, never)),
    'StoreUnreachable',
    'the signature covers it',
  )
  const { 'x-amz-checksum-sha256': _, ...bare } = presigned.headers
  assert.is.not(await code(putPart({ url: presigned.url, headers: bare }, other, never)), 'none')
  const larger = Buffer.concat([good, good])
  assert.is.not(
    await code(
      putPart({ url: presigned.url, headers: { ...presigned.headers, 'content-length': '2000' } }, larger, never),
    ),
    'none',
  )
  await putPart(presigned, good, never)
  assert.equal(
    (await store.uploads.listParts('wrong', uploadId)).map((part) => part.sha256),
    [sha256],
  )
  await store.uploads.abort('wrong', uploadId)
  await store.uploads.abort('wrong', uploadId)
  assert.equal(await store.uploads.list('wrong'), [])
})

test('an upload that was completed is complete, whatever the store said to it', async () => {
  const proxy = createServer(async (asked, answer) => {
    const { method = '', url = '', headers } = asked
    const passed = request(new URL(url, server.endpoint), { method, headers }).end(await buffer(asked))
    const [from] = (await once(passed, 'response')) as [IncomingMessage]
    const completes = method === 'POST' && url.includes('uploadId=')
    answer.writeHead(completes ? 500 : (from.statusCode ?? 0), from.headers).end(await buffer(from))
  })
  await once(proxy.listen(0, '127.0.0.1'), 'listening')
  const { port } = proxy.address() as AddressInfo
  const behind = new Store({ ...server, endpoint: `http://127.0.0.1:${port}`, bucket: 'home', timeoutMs: 5000 })
  try {
    const bytes = randomBytes(1000)
    const sha256 = hash('sha256', bytes, 'base64')
    const upload = async (key: string, { parts = true } = {}) => {
      const uploadId = await behind.uploads.start(key)
      const part = { number: 1, sizeBytes: bytes.length, sha256 }
      const etag = await putPart(await behind.uploads.presignPart({ key, uploadId, ...part }), bytes, never)
      const whole = { sizeBytes: bytes.length, checksum: compositeChecksum([sha256]) }
      return { key, uploadId, parts: parts ? [{ ...part, etag }] : [], ...whole }
    }
    await behind.uploads.complete(await upload('answered'))
    assert.is((await store.head('answered')).sizeBytes, bytes.length)
    assert.is(await code(behind.uploads.complete(await upload('refused', { parts: false }))), 'StoreUnreachable')
  } finally {
    behind[Symbol.dispose]()
    proxy.close()
  }
})

test('what the worker says of the blob is compared with what the bucket holds', async () => {
  await writeFile(join(dir, 'small'), randomBytes(300_000))
  await writeFile(join(dir, 'other'), randomBytes(300_000))
  const output = await hashOutput(join(dir, 'small'), { name: 'web' })
  const other = await hashOutput(join(dir, 'other'), { name: 'web' })
  const upload = (key: string, lie: Partial<ReceivedUpload>) =>
    code(uploadOutput(output, hubCalls(key, lie), { signal: never }))
  assert.is(await upload('lie/digest', { digest: other.digest }), 'ChecksumMismatch')
  assert.is(await code(store.head('lie/digest')), 'ReplicaMissing', 'it does not stay')
  assert.is(await upload('lie/pieces', { descriptor: other.descriptor }), 'ChecksumMismatch')
  assert.is(await upload('lie/descriptor', { descriptor: Buffer.from('d4:infod1:ai1eee') }), 'DescriptorInvalid')
  assert.is(await upload('lie/size', { sizeBytes: 1 }), 'DescriptorInvalid')
})

test('an upload never replaces what is there', async () => {
  await store.put('taken', randomBytes(10))
  await writeFile(join(dir, 'new'), randomBytes(1000))
  const output = await hashOutput(join(dir, 'new'), { name: 'web' })
  assert.is(await code(uploadOutput(output, hubCalls('taken'), { signal: never })), 'ChecksumMismatch')
  assert.is((await store.head('taken')).sizeBytes, 10)
})

test('a key that is not there is Missing; a bucket or a server that is not there says nothing of it', async () => {
  assert.is(await code(store.head('nothing')), 'ReplicaMissing')
  assert.is(await code(store.readAll('nothing', 10)), 'ReplicaMissing')
  await store.delete('nothing')
  using noBucket = new Store({ ...server, bucket: 'absent' })
  assert.is(await code(noBucket.head('nothing')), 'StoreUnreachable')
  assert.is(await code(noBucket.readAll('nothing', 10)), 'StoreUnreachable')
  using stranger = new Store({ ...server, bucket: 'home', secretAccessKey: 'wrong' })
  assert.is(await code(stranger.head('nothing')), 'StoreUnreachable')
  using unknown = new Store({ ...server, bucket: 'home', accessKeyId: 'nobody' })
  assert.is(await code(unknown.head('nothing')), 'StoreUnreachable')
  assert.is(await code(unknown.readAll('nothing', 10)), 'StoreUnreachable')
})

test('a presigned read gives any range', async () => {
  await store.put('ranged', Buffer.from('0123456789'))
  const { url } = await store.presignGet('ranged', 60)
  const response = await fetch(url, { headers: { range: 'bytes=2-4' } })
  assert.is(await response.text(), '234')
})

test('a store that stops answering is found out, also in the middle of a read', async () => {
  // More than the 32 MiB that new kernels let a connection hold on its way.
  await store.put('long', Buffer.alloc(80_000_000, 7))
  using impatient = new Store({ ...server, bucket: 'home', timeoutMs: 300 })
  const reading = impatient.read('long')
  await reading.next()
  await server.pause()
  try {
    assert.is(await code(impatient.head('long')), 'StoreUnreachable')
    const rest = async () => {
      for await (const _ of reading);
    }
    assert.is(await code(rest()), 'StoreUnreachable')
  } finally {
    server.resume()
  }
  assert.is((await impatient.readBack('long')).sizeBytes, 80_000_000)
})

test('an upload that nobody finishes is aborted after a day, and no younger one', async () => {
  const uploadId = await store.uploads.start('forgotten')
  assert.is(await sweepUploads(store, Date.now()), 0)
  assert.equal(
    (await store.uploads.list('forgotten')).map((upload) => upload.uploadId),
    [uploadId],
  )
  assert.ok((await sweepUploads(store, Date.now() + 25 * 3_600_000)) >= 1)
  assert.equal(await store.uploads.list('forgotten'), [])
})

test.run()
