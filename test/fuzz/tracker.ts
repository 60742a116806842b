/** Requests to a tracker in the open: whatever comes, it answers in bencoding or hangs up, and goes on. */
import { connect } from 'node:net'
import fc from 'fast-check'
import * as assert from 'uvu/assert'
import { decodeBencode } from '../../api/bencode.ts'
import { mutations } from './mutations.ts'

const name = fc.constantFrom('info_hash', 'peer_id', 'port', 'left', 'event', 'numwant', 'compact', 'x', '__proto__')
const plain = fc.constantFrom(
  '1',
  '0',
  '-1',
  '6881',
  '65536',
  '1e3',
  'NaN',
  'stopped',
  'completed',
  '',
  '%',
  '%zz',
  '=',
)
const escaped = fc
  .uint8Array({ minLength: 19, maxLength: 21 })
  .map((bytes) => Array.from(bytes, (byte) => `%${byte.toString(16).padStart(2, '0')}`).join(''))
const parameters = fc.array(
  fc.tuple(name, fc.oneof(plain, escaped)).map((pair) => pair.join('=')),
  { maxLength: 6 },
)
const path = fc.constantFrom('/announce', '/scrape', '/', '*', 'http://x/announce', '//')
const good = `info_hash=${'a'.repeat(20)}&peer_id=${'b'.repeat(20)}&port=1000&left=1`

async function exchange(port: number, request: Buffer): Promise<string> {
  const socket = connect(port, '127.0.0.1')
  let answer = ''
  socket.setEncoding('latin1').on('data', (text: string) => {
    answer += text
  })
  socket.on('error', () => {})
  socket.end(request)
  const { promise: closed, resolve } = Promise.withResolvers<void>()
  socket.once('close', resolve)
  await closed
  return answer
}

function assertBencoded(answer: string): void {
  const body = answer.slice(answer.indexOf('\r\n\r\n') + 4)
  assert.ok(decodeBencode(Buffer.from(body, 'latin1')) instanceof Map)
}

const get = (query: string) => Buffer.from(`GET ${query} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n`, 'latin1')

export function trackerRequests(port: number) {
  return fc.asyncProperty(path, parameters, fc.boolean(), mutations, async (where, pairs, valid, mutate) => {
    const query = `${where}?${valid ? `${good}&` : ''}${pairs.join('&')}`
    const answer = await exchange(port, mutate(get(query)))
    // mutated, it may be two requests
    if (answer.startsWith('HTTP/1.1 200') && answer.split('HTTP/1.1').length === 2) assertBencoded(answer)
    const after = await exchange(port, get(`/announce?${good}`))
    assert.match(after, /^HTTP\/1.1 200/)
    assertBencoded(after)
    assert.match(after, /8:interval/)
  })
}
