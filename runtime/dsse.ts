import {
  createHash,
  createPrivateKey,
  createPublicKey,
  generateKeyPairSync,
  type KeyObject,
  sign as signBytes,
  verify as verifyBytes,
} from 'node:crypto'
import { z } from 'zod'
import { ShoalError, Stalled } from '../api/errors.ts'

/** DSSE envelopes (Dead Simple Signing Envelope v1, JSON) with Ed25519. */
const envelopeSchema = z.object({
  payloadType: z.string().max(256),
  payload: z.base64(),
  signatures: z
    .array(z.object({ keyid: z.string().max(128), sig: z.base64() }))
    .min(1)
    .max(8),
})
const maxEnvelopeBytes = 1 << 20

export interface VerificationKey {
  /** SHA-256 of the key's SPKI, first 16 hex digits. */
  id: string
  publicKey: KeyObject
}
export interface SigningKey extends VerificationKey {
  privateKey: KeyObject
}

/** The signing key of a PEM file's text. Throws `ConfigInvalid`. */
export function loadSigningKey(pem: string): SigningKey {
  const privateKey = readKey(() => createPrivateKey(pem))
  return { ...verificationKey(createPublicKey(privateKey)), privateKey }
}

/** Every public key of a text with one or more PEM blocks. Throws `ConfigInvalid`, also when there is none. */
export function loadVerificationKeys(pem: string): VerificationKey[] {
  const blocks = pem.match(/-----BEGIN PUBLIC KEY-----[^-]+-----END PUBLIC KEY-----/g) ?? []
  if (blocks.length === 0) throw new Stalled('ConfigInvalid', 'there is no public key in the text')
  return blocks.map((block) => verificationKey(readKey(() => createPublicKey(block))))
}

function readKey(read: () => KeyObject): KeyObject {
  let key: KeyObject
  try {
    key = read()
  } catch (error) {
    throw new Stalled('ConfigInvalid', 'the text is not a PEM key', { cause: error })
  }
  if (key.asymmetricKeyType === 'ed25519') return key
  throw new Stalled('ConfigInvalid', `the key is ${key.asymmetricKeyType}, not Ed25519`)
}

/** A new key pair, as PEM. */
export function generateSigningKey(): { privateKeyPem: string; publicKeyPem: string } {
  const { privateKey, publicKey } = generateKeyPairSync('ed25519')
  return {
    privateKeyPem: privateKey.export({ type: 'pkcs8', format: 'pem' }) as string,
    publicKeyPem: publicKey.export({ type: 'spki', format: 'pem' }) as string,
  }
}

function verificationKey(publicKey: KeyObject): VerificationKey {
  const spki = publicKey.export({ type: 'spki', format: 'der' })
  return { id: createHash('sha256').update(spki).digest('hex').slice(0, 16), publicKey }
}

/** The envelope, as JSON text. */
export function sign(payloadType: string, payload: Uint8Array, key: SigningKey): string {
  const sig = signBytes(null, preAuthenticationEncoding(payloadType, payload), key.privateKey).toString('base64')
  const envelope = {
    payloadType,
    payload: Buffer.from(payload).toString('base64'),
    signatures: [{ keyid: key.id, sig }],
  }
  return JSON.stringify(envelope)
}

/** The payload, when one of the keys signed it under this type. Throws `SignatureInvalid`. */
export function verify(envelope: string, payloadType: string, keys: VerificationKey[]): Uint8Array {
  const refuse = (why: string, cause?: unknown) => new ShoalError('SignatureInvalid', why, { cause })
  if (envelope.length > maxEnvelopeBytes) throw refuse('the envelope is too large')
  let parsed: z.infer<typeof envelopeSchema>
  try {
    parsed = envelopeSchema.parse(JSON.parse(envelope))
  } catch (error) {
    throw refuse('not a DSSE envelope', error)
  }
  if (parsed.payloadType !== payloadType) throw refuse(`the payload is a ${parsed.payloadType}`)
  const payload = Buffer.from(parsed.payload, 'base64')
  const signed = preAuthenticationEncoding(payloadType, payload)
  for (const { keyid, sig } of parsed.signatures) {
    const key = keys.find((candidate) => candidate.id === keyid)
    if (key && verifyBytes(null, signed, key.publicKey, Buffer.from(sig, 'base64'))) return payload
  }
  throw refuse('no trusted key signed this')
}

/** PAE of the DSSE protocol: what is signed. */
function preAuthenticationEncoding(payloadType: string, payload: Uint8Array): Buffer {
  return Buffer.concat([
    Buffer.from(`DSSEv1 ${Buffer.byteLength(payloadType)} ${payloadType} ${payload.byteLength} `),
    payload,
  ])
}
