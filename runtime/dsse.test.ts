import { generateKeyPairSync } from 'node:crypto'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { ShoalError } from '../api/errors.ts'
import { generateSigningKey, loadSigningKey, loadVerificationKeys, sign, verify } from './dsse.ts'

const test = suite('dsse')
const type = 'application/vnd.test+json'
const payload = Buffer.from('{"a":1}')
const pairs = [generateSigningKey(), generateSigningKey()]
const [first, second] = pairs.map(({ privateKeyPem }) => loadSigningKey(privateKeyPem))
if (!first || !second) throw new Error('no keys')
const keys = loadVerificationKeys(pairs.map(({ publicKeyPem }) => publicKeyPem).join('\n'))

const refused = (code: string, fn: () => unknown) =>
  assert.throws(fn, (error: unknown) => error instanceof ShoalError && error.code === code)

test('what either of two live keys signed verifies, and gives the payload', () => {
  for (const key of [first, second]) assert.equal(Buffer.from(verify(sign(type, payload, key), type, keys)), payload)
})

test('one signature of several that is trusted is enough', () => {
  const [a, b] = [first, second].map((key) => JSON.parse(sign(type, payload, key)))
  const both = JSON.stringify({ ...a, signatures: [...a.signatures, ...b.signatures] })
  assert.equal(Buffer.from(verify(both, type, keys.slice(1))), payload)
})

test('no change of a single byte of the envelope passes as something else', () => {
  const envelope = sign(type, payload, first)
  for (let at = 0; at < envelope.length; at++) {
    const other = envelope[at] === 'A' ? 'B' : 'A'
    const changed = envelope.slice(0, at) + other + envelope.slice(at + 1)
    try {
      // Base64's last digit has bits that mean nothing.
      assert.equal(Buffer.from(verify(changed, type, keys)), payload)
    } catch (error) {
      assert.is((error as ShoalError).code, 'SignatureInvalid', `byte ${at}`)
    }
  }
})

test('another type, an untrusted key, garbage and floods are refused', () => {
  const envelope = sign(type, payload, first)
  refused('SignatureInvalid', () => verify(envelope, 'application/other', keys))
  refused('SignatureInvalid', () => verify(envelope, type, keys.slice(1)))
  refused('SignatureInvalid', () => verify(envelope, type, []))
  for (const text of ['', 'null', '[]', '{}', '{"payloadType":1}', `${envelope}x`, 'x'.repeat(2 << 20)])
    refused('SignatureInvalid', () => verify(text, type, keys))
})

test('a signature is for its type: the payload of another type does not verify under it', () => {
  const parsed = JSON.parse(sign('application/other', payload, first))
  refused('SignatureInvalid', () => verify(JSON.stringify({ ...parsed, payloadType: type }), type, keys))
})

test('an envelope near the limit verifies', () => {
  const large = Buffer.alloc(700_000, 7)
  assert.is(verify(sign(type, large, first), type, keys).byteLength, large.byteLength)
})

test('only Ed25519 keys load', () => {
  const { privateKey, publicKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' })
  refused('ConfigInvalid', () => loadSigningKey(privateKey.export({ type: 'pkcs8', format: 'pem' }) as string))
  refused('ConfigInvalid', () => loadVerificationKeys(publicKey.export({ type: 'spki', format: 'pem' }) as string))
  refused('ConfigInvalid', () => loadVerificationKeys('no key'))
  refused('ConfigInvalid', () => loadSigningKey('no key'))
})

test.run()
