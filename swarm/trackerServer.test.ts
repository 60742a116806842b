import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { decodeBencode } from '../api/bencode.ts'
import { parseCompactPeers } from './addresses.ts'
import { serveTracker } from './trackerServer.ts'

const test = suite('tracker server')
// bytes that are no UTF-8, `&` and `=` among them
const infoHash = '%ff%fe%26%3d%00%0112345678901234'
const peer = (n: number) => `-XX0000-00000000000${n}`

async function ask(url: string, query: string): Promise<Map<string, unknown>> {
  const answer = decodeBencode(new Uint8Array(await (await fetch(`${url}?${query}`)).arrayBuffer()))
  assert.ok(answer instanceof Map)
  return answer
}
const text = (value: unknown) => Buffer.from(value as Uint8Array).toString()

test('peers are named to each other in compact form, with when to come again; who stops is forgotten', async () => {
  await using tracker = await serveTracker({ host: '127.0.0.1', port: 0 })
  const announce = (n: number, rest: string) =>
    ask(tracker.url, `info_hash=${infoHash}&peer_id=${peer(n)}&port=${1000 + n}&compact=1&${rest}`)
  assert.equal(parseCompactPeers((await announce(1, 'left=0')).get('peers') as Uint8Array), [])
  const second = await announce(2, 'left=5')
  assert.equal(parseCompactPeers(second.get('peers') as Uint8Array), [{ host: '127.0.0.1', port: 1001 }])
  assert.ok((second.get('interval') as number) >= 1)
  assert.equal([second.get('complete'), second.get('incomplete')], [1, 1])
  assert.equal(parseCompactPeers((await announce(3, 'left=5&numwant=0')).get('peers') as Uint8Array), [])
  await announce(1, 'left=0&event=stopped')
  const ports = parseCompactPeers((await announce(3, 'left=5')).get('peers') as Uint8Array).map(({ port }) => port)
  assert.equal(ports, [1002])
  const scraped = await ask(tracker.url.replace('announce', 'scrape'), `info_hash=${infoHash}`)
  const [counts] = [...(scraped.get('files') as Map<string, Map<string, number>>).values()]
  assert.equal([counts?.get('complete'), counts?.get('incomplete')], [0, 2])
})

test('nonsense is refused in words', async () => {
  await using tracker = await serveTracker({ host: '127.0.0.1', port: 0 })
  const good = `info_hash=${infoHash}&peer_id=${peer(1)}&port=1`
  for (const [query, reason] of [
    [good.replace(infoHash, 'short'), /info_hash/],
    [good.replace('port=1', 'port=70000'), /port/],
    [good.replace('port=1', ''), /port/],
    [good.replace(peer(1), 'me'), /peer_id/],
    ['%&&=%zz', /info_hash/],
  ] as const)
    assert.match(text((await ask(tracker.url, query)).get('failure reason')), reason)
  assert.match(text((await ask(tracker.url.replace('announce', 'x'), good)).get('failure reason')), /announce/)
  const { port } = new URL(tracker.url)
  try {
    await using _second = await serveTracker({ host: '127.0.0.1', port: Number(port) })
  } catch (error) {
    return assert.match((error as Error).message, /taken/)
  }
  assert.unreachable('two trackers on one port')
})

test.run()
