/**
 * A tracker over HTTP as other clients know it (BEP 3, compact answers of BEP 23, BEP 48's scrape), for swarms in the
 * open: anyone may announce anything. A fleet's tracker answers machines alone, in `fleet/`.
 */
import { createServer, type IncomingMessage } from 'node:http'
import { type Bencoded, encodeBencode } from '../api/bencode.ts'
import { ShoalError } from '../api/errors.ts'
import { compactPeers, plainHost } from './addresses.ts'
import { Tracker } from './tracker.ts'

const MAX_SWARMS = 10_000
const EXPIRE_MS = 10_000

export interface TrackerServer extends AsyncDisposable {
  /** To be announced to. */
  readonly url: string
}

/** @throws ShoalError `Conflict` when the port is taken. */
export async function serveTracker(o: { host: string; port: number }): Promise<TrackerServer> {
  const tracker = new Tracker()
  const server = createServer((request, response) => {
    const body = Buffer.from(encodeBencode(answer(tracker, request)))
    response.writeHead(200, { 'Content-Type': 'text/plain', 'Content-Length': body.length }).end(body)
  })
  await new Promise<void>((resolve, reject) => {
    server.once('error', (error: NodeJS.ErrnoException) =>
      reject(
        error.code === 'EADDRINUSE'
          ? new ShoalError('Conflict', `${o.host}:${o.port} is taken by another process.`, { cause: error })
          : error,
      ),
    )
    server.listen(o.port, o.host, resolve)
  })
  const expiry = setInterval(() => tracker.expire(performance.now()), EXPIRE_MS)
  const address = server.address()
  const port = typeof address === 'object' && address ? address.port : o.port
  return {
    url: `http://${o.host}:${port}/announce`,
    async [Symbol.asyncDispose]() {
      clearInterval(expiry)
      server.closeAllConnections()
      await new Promise((resolve) => server.close(resolve))
    },
  }
}

function answer(tracker: Tracker, request: IncomingMessage): Map<string, Bencoded> {
  const [path, search = ''] = (request.url ?? '').split('?', 2)
  const query = new Map(search.split('&').map((pair) => pair.split('=', 2) as [string, string | undefined]))
  const bytes = (name: string) => Buffer.from(percentDecoded(query.get(name) ?? ''), 'latin1')
  const infoHash = bytes('info_hash').toString('hex')
  if (infoHash.length !== 40) return refusal('info_hash is not 20 bytes')
  if (path === '/scrape') {
    const { complete, incomplete } = tracker.counts(infoHash)
    const counts = new Map<string, Bencoded>(Object.entries({ complete, downloaded: 0, incomplete }))
    return new Map([['files', new Map([[bytes('info_hash').toString('latin1'), counts]])]])
  }
  if (path !== '/announce') return refusal('there are /announce and /scrape')
  return announce(tracker, { infoHash, query, host: plainHost(request.socket.remoteAddress), peerId: bytes('peer_id') })
}

function announce(
  tracker: Tracker,
  o: { infoHash: string; query: Map<string, string | undefined>; host: string; peerId: Buffer },
): Map<string, Bencoded> {
  const { infoHash, query, host } = o
  const port = Number(query.get('port'))
  // BEP 3's `ip` is not read: it would send a swarm to anyone's address
  if (!(port > 0 && port < 65_536)) return refusal('port is not a port')
  if (o.peerId.length !== 20) return refusal('peer_id is not 20 bytes')
  if (!/^[\d.]+$/.test(host)) return refusal('only IPv4 is served')
  const peerId = o.peerId.toString('hex')
  const machine = `${peerId}@${host}`
  if (query.get('event') === 'stopped') {
    tracker.forget(infoHash, machine)
    return new Map<string, Bencoded>(Object.entries({ interval: 60, peers: Buffer.alloc(0) }))
  }
  if (tracker.swarms >= MAX_SWARMS && tracker.counts(infoHash).complete + tracker.counts(infoHash).incomplete === 0)
    return refusal('the tracker is full')
  const completed = query.get('left') === '0'
  const { peers, intervalMs } = tracker.announce({ infoHash, machine, host, port, completed }, performance.now())
  const wanted = query.has('numwant') ? Math.max(0, Number(query.get('numwant')) || 0) : peers.length
  const interval = Math.ceil(intervalMs / 1000)
  return new Map<string, Bencoded>([
    ['complete', tracker.counts(infoHash).complete],
    ['incomplete', tracker.counts(infoHash).incomplete],
    ['interval', interval],
    ['min interval', Math.ceil(interval / 2)],
    ['peers', compactPeers(peers.slice(0, wanted))],
  ])
}

function refusal(reason: string): Map<string, Bencoded> {
  return new Map([['failure reason', Buffer.from(reason)]])
}

/** One character a byte: an infohash is not UTF-8. */
function percentDecoded(text: string): string {
  return text.replaceAll(/%([0-9a-f]{2})/gi, (_, hex: string) => String.fromCharCode(Number.parseInt(hex, 16)))
}
