import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { Store } from '../../artifacts/store.ts'
import { startStore } from '../parts/store.ts'
import { type StoreCounts, StoreMeter } from './storeMeter.ts'

const test = suite('store meter')

test('counts presigned reads apart from all others, and closes when the store is gone', async () => {
  await using server = await startStore()
  await using meter = new StoreMeter()
  await server.createBucket('shoal')
  const endpoint = `http://127.0.0.1:${await meter.relay('eu-west', server.port)}`
  const countsUrl = await meter.serve()
  const counts = async () => ((await (await fetch(countsUrl)).json()) as Record<string, StoreCounts>)['eu-west']
  const { accessKeyId, secretAccessKey } = server
  using store = new Store({ endpoint, bucket: 'shoal', accessKeyId, secretAccessKey })
  const blob = Buffer.alloc(1_000_000, 7)
  await store.put('blob', blob)
  await store.readAll('blob', 2_000_000)
  const { url } = await store.presignGet('blob', 60)
  for (const range of ['bytes=0-299999', 'bytes=300000-999999']) {
    await (await fetch(url, { headers: { range } })).arrayBuffer()
  }
  const { presignedBytes = 0, otherBytes = 0 } = (await counts()) ?? {}
  assert.ok(presignedBytes >= 1_000_000 && presignedBytes < 1_010_000, `presigned: ${presignedBytes}`)
  assert.ok(otherBytes >= 1_000_000 && otherBytes < 1_010_000, `others: ${otherBytes}`)
  await server.kill()
  await fetch(url).then(
    () => assert.unreachable(),
    (error: unknown) => assert.instance(error, TypeError),
  )
})

test.run()
