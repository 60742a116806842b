import { X509Certificate } from 'node:crypto'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { createAuthority, createServerCertificate } from './certificates.ts'

const test = suite('certificates')

test('a server’s certificate is its authority’s, for its names and addresses and no others', async () => {
  const [authority, other] = await Promise.all([createAuthority('shoal'), createAuthority('other')])
  const { certificate, key } = await createServerCertificate(authority, [
    'hub.example.com',
    'localhost',
    '10.0.0.7',
    '::1',
  ])
  const [parsed, ca, stranger] = [certificate, authority.certificate, other.certificate].map(
    (pem) => new X509Certificate(pem),
  )
  assert.ok(parsed && ca && stranger)
  assert.ok(parsed.verify(ca.publicKey) && parsed.checkIssued(ca))
  assert.not.ok(parsed.verify(stranger.publicKey))
  assert.ok(parsed.checkHost('hub.example.com') && parsed.checkIP('10.0.0.7') && parsed.checkIP('::1'))
  assert.not.ok(parsed.checkHost('other.example.com') || parsed.checkIP('10.0.0.8'))
  assert.equal([ca.ca, parsed.ca], [true, false])
  assert.ok(Date.parse(parsed.validFrom) < Date.now() && Date.parse(parsed.validTo) > Date.now() + 300 * 24 * 3_600_000)
  assert.match(key, 'BEGIN PRIVATE KEY')
})

test('serial numbers are positive and never the same', async () => {
  const authority = await createAuthority('shoal')
  const made = await Promise.all(Array.from({ length: 40 }, () => createServerCertificate(authority, ['a'])))
  const serials = made.map(({ certificate }) => new X509Certificate(certificate).serialNumber)
  assert.is(new Set(serials).size, 40)
  assert.ok(serials.every((serial) => serial.length <= 32 && !serial.startsWith('-')))
})

test.run()
