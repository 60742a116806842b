import { once } from 'node:events'
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import WebTorrent from 'webtorrent'
import { until } from '../hack/parts/process.ts'
import { assertRelease, Playground, sampleArtifact, within, writeRelease } from './fixture.ts'

const test = suite('interop')
const sample = sampleArtifact({ 'a/one': 1, 'bin/server': 5_000_001, 'data/x': 4_000_000 }, 128 << 10)
const alone = {
  dht: false,
  lsd: false,
  utPex: false,
  tracker: false,
  utp: false,
  webSeeds: false,
  natUpnp: false,
  natPmp: false,
  // encrypted handshakes: between agents the key is proved instead
  secure: false,
  torrentPort: 0,
}

async function webtorrent(): Promise<{ client: WebTorrent } & AsyncDisposable> {
  const client = new WebTorrent(alone)
  return { client, [Symbol.asyncDispose]: () => new Promise((resolve) => client.destroy(() => resolve())) }
}

test('webtorrent downloads from us', async () => {
  await using playground = await Playground.create()
  const seed = await playground.seed(sample)
  await using foreign = await webtorrent()
  const dir = join(playground.dir, 'foreign')
  const torrent = foreign.client.add(Buffer.from(sample.torrent), { path: dir, announce: [] })
  await once(torrent, 'infoHash')
  torrent.addPeer(`127.0.0.1:${seed.node.port}`)
  await within(once(torrent, 'done'), 'webtorrent is done')
  await assertRelease(join(dir, 'sample'), sample)
})

test('we download from webtorrent', async () => {
  await using playground = await Playground.create()
  const dir = join(playground.dir, 'foreign')
  await writeRelease(join(dir, 'sample'), sample)
  await using foreign = await webtorrent()
  const torrent = foreign.client.add(Buffer.from(sample.torrent), { path: dir, announce: [] })
  await within(once(torrent, 'done'), 'webtorrent has it')
  const port = foreign.client.torrentPort
  const leech = await playground.open(await playground.node(), sample, { name: 'm' })
  leech.addPeers([{ host: '127.0.0.1', port }])
  await within(leech.done, 'done')
  await assertRelease(join(playground.dir, 'm', 'release'), sample)
  assert.is(leech.stats().wastedBytes, 0)
})

test('webtorrent and we share what each lacks', async () => {
  await using playground = await Playground.create()
  const node = await playground.node()
  const seed = await playground.seed(sample, { uploadBytesPerSecond: 8e6 })
  const ours = await playground.open(node, sample, { name: 'm' })
  await using foreign = await webtorrent()
  const dir = join(playground.dir, 'foreign')
  const torrent = foreign.client.add(Buffer.from(sample.torrent), { path: dir, announce: [] })
  await once(torrent, 'infoHash')
  // webtorrent hears of us alone: all it gets comes through us
  torrent.addPeer(`127.0.0.1:${node.port}`)
  ours.addPeers([seed.address])
  await within(ours.done, 'we are done')
  await until('webtorrent is done', () => torrent.done)
  assert.ok((await readFile(join(dir, 'sample', 'bin/server'))).equals(sample.blob.subarray(1, 5_000_002)))
})

test.run()
