import { createPrivateKey, generateKeyPairSync } from 'node:crypto'
import { exportJWK, SignJWT } from 'jose'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import type { ShoalError } from '../api/errors.ts'
import { generateSigningKey } from './dsse.ts'
import { signMachineToken, verifyMachineToken, verifyServiceAccountToken } from './identity.ts'

const test = suite('identity')
const enrolled = generateSigningKey()
const stranger = generateSigningKey()
const publicKeyOf = async (machine: string) => (machine === 'box-1' ? enrolled.publicKeyPem : undefined)

async function refused(work: Promise<unknown>): Promise<void> {
  const error = await work.then(
    () => assert.unreachable('it was accepted'),
    (thrown: unknown) => thrown as ShoalError,
  )
  assert.is(error?.code, 'Unauthorized')
}

test('a machine is who its enrolled key says', async () => {
  const token = await signMachineToken(enrolled.privateKeyPem, { machine: 'box-1', region: 'eu' })
  assert.is(await verifyMachineToken(token, { region: 'eu', publicKeyOf }), 'box-1')
})

test('another region, another machine’s name, a stranger’s key and old or endless tokens are refused', async () => {
  const of = (pem: string, machine: string, ttlMs?: number) =>
    signMachineToken(pem, { machine, region: 'eu', ...(ttlMs !== undefined && { ttlMs }) })
  const good = await of(enrolled.privateKeyPem, 'box-1')
  await refused(verifyMachineToken(good, { region: 'us', publicKeyOf }))
  await refused(verifyMachineToken(await of(enrolled.privateKeyPem, 'box-2'), { region: 'eu', publicKeyOf }))
  await refused(verifyMachineToken(await of(stranger.privateKeyPem, 'box-1'), { region: 'eu', publicKeyOf }))
  await refused(verifyMachineToken(await of(enrolled.privateKeyPem, 'box-1', -120_000), { region: 'eu', publicKeyOf }))
  await refused(verifyMachineToken('nonsense', { region: 'eu', publicKeyOf }))
  await refused(verifyMachineToken(good.split('.').slice(0, 2).join('.'), { region: 'eu', publicKeyOf }))
  const [, payload] = good.split('.')
  const none = `${Buffer.from('{"alg":"none"}').toString('base64url')}.${payload}.`
  await refused(verifyMachineToken(none, { region: 'eu', publicKeyOf }))
  const old = await new SignJWT({})
    .setProtectedHeader({ alg: 'EdDSA' })
    .setSubject('box-1')
    .setAudience('shoal-machine-eu')
    .setIssuedAt(Math.floor(Date.now() / 1000) - 600)
    .setExpirationTime('1y')
    .sign(createPrivateKey(enrolled.privateKeyPem))
  await refused(verifyMachineToken(old, { region: 'eu', publicKeyOf }))
})

test('that the key can’t be looked up is not the machine’s fault', async () => {
  const token = await signMachineToken(enrolled.privateKeyPem, { machine: 'box-1', region: 'eu' })
  const away = new Error('database away')
  const error = await verifyMachineToken(token, { region: 'eu', publicKeyOf: () => Promise.reject(away) }).catch(
    (thrown: unknown) => thrown,
  )
  assert.is(error, away)
})

test('a node’s token names its node, and of two clusters with one issuer the one whose key signed', async () => {
  const issuer = 'https://kubernetes.default.svc'
  const keys = await Promise.all(
    ['a', 'b'].map(async (name) => {
      const { privateKey, publicKey } = generateKeyPairSync('rsa', { modulusLength: 2048 })
      const jwk = { ...(await exportJWK(publicKey)), kid: 'same', alg: 'RS256' }
      return { privateKey, cluster: { name, issuer, jwks: JSON.stringify({ keys: [jwk] }) } }
    }),
  )
  const clusters = keys.map(({ cluster }) => cluster)
  const node = { name: 'node-7', uid: 'u-7' }
  const claims = () =>
    new SignJWT({ 'kubernetes.io': { namespace: 'shoal', serviceaccount: { name: 'shoal-agent', uid: 'x' }, node } })
      .setProtectedHeader({ alg: 'RS256', kid: 'same' })
      .setIssuer(issuer)
      .setAudience('shoal-region-eu')
      .setIssuedAt()
  const token = await claims()
    .setExpirationTime('1h')
    .sign(keys[1]?.privateKey as never)
  const identity = await verifyServiceAccountToken(token, 'shoal-region-eu', clusters)
  assert.equal(identity, { cluster: 'b', namespace: 'shoal', serviceAccount: 'shoal-agent', node })
  await refused(
    claims()
      .sign(keys[1]?.privateKey as never)
      .then((endless) => verifyServiceAccountToken(endless, 'shoal-region-eu', clusters)),
  )
})

test.run()
