import { GetObjectCommand, PutObjectCommand, S3Client } from '@aws-sdk/client-s3'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { temporaryDir, until } from './process.ts'
import { type StoreServer, startStore } from './store.ts'

const test = suite('parts: S3 server')

const connect = ({ endpoint, region, accessKeyId, secretAccessKey }: StoreServer) =>
  new S3Client({
    endpoint,
    region,
    credentials: { accessKeyId, secretAccessKey },
    forcePathStyle: true,
    maxAttempts: 1,
  })

const read = async (client: S3Client) => {
  const answer = await client.send(new GetObjectCommand({ Bucket: 'releases', Key: 'a/b' }))
  return answer.Body?.transformToString()
}

test('an object is there after stop, kill and start; not while it is down', async () => {
  await using store = await startStore()
  await store.createBucket('releases')
  await store.createBucket('releases')
  const client = connect(store)
  await client.send(new PutObjectCommand({ Bucket: 'releases', Key: 'a/b', Body: 'blob' }))
  await store.stop()
  assert.instance(await read(client).catch((error) => error), Error)
  await store.start()
  assert.is(await read(client), 'blob')
  await store.kill()
  await store.start()
  assert.is(await read(client), 'blob')
  client.destroy()
})

test('a paused server answers nobody, and goes on when resumed', async () => {
  await using store = await startStore()
  await store.pause()
  const ask = () => fetch(store.endpoint, { signal: AbortSignal.timeout(200) }).catch(({ name }: Error) => name)
  // The signal stops its threads one after another.
  await until('no answer', async () => (await ask()) === 'TimeoutError')
  assert.is(await ask(), 'TimeoutError')
  store.resume()
  await until('an answer', () => fetch(store.endpoint, { signal: AbortSignal.timeout(500) }))
})

test('a folder that is given is kept, and used again', async () => {
  await using dir = await temporaryDir('shoal-parts')
  {
    await using store = await startStore({ dir: dir.path })
    await store.createBucket('releases')
    const client = connect(store)
    await client.send(new PutObjectCommand({ Bucket: 'releases', Key: 'a/b', Body: 'blob' }))
    client.destroy()
  }
  await using store = await startStore({ dir: dir.path })
  const client = connect(store)
  assert.is(await read(client), 'blob')
  client.destroy()
})

test.run()
