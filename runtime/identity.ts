import { createHash, createPrivateKey, createPublicKey } from 'node:crypto'
import { createLocalJWKSet, decodeJwt, type JSONWebKeySet, jwtVerify, SignJWT } from 'jose'
import { z } from 'zod'
import { ShoalError, Transient } from '../api/errors.ts'
import { ApiError } from './apiError.ts'
import { type Clock, systemClock } from './clock.ts'
import type { Cluster } from './cluster.ts'
import { core } from './core.ts'

/** Who a Kubernetes token belongs to. */
export interface Caller {
  username: string
  groups: string[]
}

const reviewStatus = z.object({
  status: z.object({
    authenticated: z.boolean().default(false),
    audiences: z.array(z.string()).default([]),
    // empty where the token is not valid
    user: z.object({ username: z.string().default(''), groups: z.array(z.string()).default([]) }).optional(),
  }),
})

/**
 * Asks the API server whose bearer tokens are. An answer is kept for `keptMs` by the token's hash, a refusal for
 * `refusedMs`, and a token that is being asked about is not asked about twice.
 */
export class TokenReviewer {
  readonly #cluster: Cluster
  readonly #audience: string | undefined
  readonly #clock: Clock
  readonly #kept = new Map<string, { caller: Promise<Caller>; untilMs: number }>()
  static readonly keptMs = 20_000
  static readonly refusedMs = 2000

  constructor(cluster: Cluster, audience: string | undefined, clock: Clock = systemClock) {
    this.#cluster = cluster
    this.#audience = audience
    this.#clock = clock
  }

  /** Throws `Unauthorized`. */
  async review(token: string): Promise<Caller> {
    const hash = createHash('sha256').update(token).digest('base64')
    const kept = this.#kept.get(hash)
    if (kept && kept.untilMs > this.#clock.monotonic()) return kept.caller
    if (this.#kept.size >= 10_000) this.#kept.clear()
    const entry = { caller: this.#ask(token), untilMs: this.#clock.monotonic() + TokenReviewer.keptMs }
    this.#kept.set(hash, entry)
    entry.caller.catch((error: unknown) => {
      // Only a refusal is an answer; that there was none is forgotten at once.
      const refused = error instanceof ShoalError && error.code === 'Unauthorized'
      entry.untilMs = refused ? this.#clock.monotonic() + TokenReviewer.refusedMs : 0
    })
    return entry.caller
  }

  async #ask(token: string): Promise<Caller> {
    const review = {
      apiVersion: 'authentication.k8s.io/v1',
      kind: 'TokenReview',
      spec: { token, ...(this.#audience !== undefined && { audiences: [this.#audience] }) },
    }
    const answer = await this.#cluster.create(core.TokenReview, review).catch((error: unknown) => {
      // That we may not ask says nothing about who asks us.
      throw error instanceof ApiError
        ? new Transient('Unavailable', `TokenReview: ${error.message}`, { cause: error })
        : error
    })
    const { status } = reviewStatus.parse(answer)
    const meant = this.#audience === undefined || status.audiences.includes(this.#audience)
    if (!status.authenticated || !status.user || !meant) {
      throw new ShoalError('Unauthorized', 'the token is not valid here')
    }
    return status.user
  }
}

/** A cluster whose ServiceAccount tokens are trusted. */
export interface TrustedCluster {
  name: string
  issuer: string
  /** Its signing keys, as JSON. */
  jwks: string
}

const boundClaims = z.object({
  'kubernetes.io': z.object({
    namespace: z.string(),
    serviceaccount: z.object({ name: z.string() }),
    node: z.object({ name: z.string(), uid: z.string() }).optional(),
  }),
})

export interface NodeIdentity {
  cluster: string
  namespace: string
  serviceAccount: string
  node: { name: string; uid: string } | undefined
}

/** Whose ServiceAccount token this is, by the clusters' own keys: no API server is asked. Throws `Unauthorized`. */
export async function verifyServiceAccountToken(
  token: string,
  audience: string,
  clusters: TrustedCluster[],
): Promise<NodeIdentity> {
  for (const cluster of clusters) {
    try {
      const { payload } = await jwtVerify(token, keySet(cluster.jwks), {
        issuer: cluster.issuer,
        audience,
        algorithms: ['RS256', 'ES256', 'ES384', 'ES512', 'EdDSA'],
        requiredClaims: ['exp'],
      })
      const claims = boundClaims.parse(payload)['kubernetes.io']
      return {
        cluster: cluster.name,
        namespace: claims.namespace,
        serviceAccount: claims.serviceaccount.name,
        node: claims.node,
      }
    } catch {
      // Another cluster may know it.
    }
  }
  throw new ShoalError('Unauthorized', 'no trusted cluster issued this token')
}

/** Parsed once: an imported key verifies in 0.05 ms, and importing it takes longer than that. */
const keySets = new Map<string, ReturnType<typeof createLocalJWKSet>>()
function keySet(jwks: string): ReturnType<typeof createLocalJWKSet> {
  const known = keySets.get(jwks)
  if (known) return known
  if (keySets.size >= 100) keySets.clear()
  const made = createLocalJWKSet(JSON.parse(jwks) as JSONWebKeySet)
  keySets.set(jwks, made)
  return made
}

const machineAudience = (region: string) => `shoal-machine-${region}`

/** A short-lived token that a machine signs with its enrolled key. */
export function signMachineToken(
  privateKeyPem: string,
  claims: { machine: string; region: string; ttlMs?: number },
): Promise<string> {
  return new SignJWT({})
    .setProtectedHeader({ alg: 'EdDSA' })
    .setSubject(claims.machine)
    .setAudience(machineAudience(claims.region))
    .setIssuedAt()
    .setExpirationTime(new Date(Date.now() + (claims.ttlMs ?? 120_000)))
    .sign(createPrivateKey(privateKeyPem))
}

/** The machine that signed the token, by the key it enrolled with. Throws `Unauthorized`. */
export async function verifyMachineToken(
  token: string,
  options: { region: string; publicKeyOf: (machine: string) => Promise<string | undefined> },
): Promise<string> {
  const refuse = (cause?: unknown) => new ShoalError('Unauthorized', 'the machine’s token is not valid here', { cause })
  let machine: string | undefined
  try {
    machine = decodeJwt(token).sub
  } catch (error) {
    throw refuse(error)
  }
  const pem = machine === undefined ? undefined : await options.publicKeyOf(machine)
  if (machine === undefined || pem === undefined) throw refuse()
  try {
    await jwtVerify(token, createPublicKey(pem), {
      audience: machineAudience(options.region),
      algorithms: ['EdDSA'],
      maxTokenAge: '5m',
      requiredClaims: ['exp'],
      clockTolerance: 60,
    })
  } catch (error) {
    throw refuse(error)
  }
  return machine
}
