/**
 * rollout/: what the hub tells a region, and how a rollout goes on: envelopes, the plan of waves and the engine. Pure
 * functions of (goal, counts, clock), so that hub, region, agent and tests run the same code; nothing here does I/O.
 */
import { createHash } from 'node:crypto'
import { z } from 'zod'
import { activation } from '../api/activation.ts'
import { machineSelector } from '../api/goalState.ts'
import { intOrPercent, sha256Digest } from '../api/meta.ts'
import { type SigningKey, sign, type VerificationKey, verify } from '../runtime/dsse.ts'

const goalType = 'application/vnd.shoal.goal+json'
const indexType = 'application/vnd.shoal.index+json'

/** How far a region may go: the greater of a number and a share of its selected machines. */
const target = z.object({ machines: z.int().min(0), percent: z.int().min(0).max(100) })
export type Target = z.infer<typeof target>

/** What machines run: an artifact and how it is activated. Named by the hash of this. */
export const template = z.object({
  artifact: z.object({
    name: z.string(),
    digest: sha256Digest,
    sizeBytes: z.int(),
    key: z.string(),
    infoHash: z.string(),
    descriptorDigest: sha256Digest,
  }),
  activation,
})
export type Template = z.infer<typeof template>

/** The signed payload of a RegionalGoalState (design: what the hub tells a region is signed bytes). */
const goalPayload = z.object({
  region: z.string(),
  namespace: z.string(),
  name: z.string(),
  uid: z.string(),
  place: z.string(),
  selector: machineSelector,
  template,
  templateHash: z.string(),
  /** The last template that worked: kept on disk, and gone back to. */
  previous: z.object({ template, templateHash: z.string() }).optional(),
  target,
  halted: z.boolean(),
  rollback: z.boolean(),
  maxUnavailable: intOrPercent,
  failureThreshold: intOrPercent,
  revision: z.int().min(1),
  sequence: z.int().min(1),
  issuedAt: z.int(),
})
export type GoalPayload = z.infer<typeof goalPayload>

/** The signed list of what is current in a region, by `namespace/name`; good for `indexLifetimeMs` after it moved on. */
const indexPayload = z.object({
  region: z.string(),
  issuedAt: z.int(),
  goals: z.record(
    z.string(),
    z.object({
      revision: z.int(),
      sequence: z.int(),
      /** Every wave of the revision is complete: what fails from now on says nothing about it. */
      settled: z.boolean().optional(),
    }),
  ),
})
export type IndexPayload = z.infer<typeof indexPayload>

/**
 * A sequence above all that are known: the time, so that it is higher than that of a goal that was deleted a moment ago.
 * Where the clock is behind it is one that nobody else thinks of: a hub that is restored from a backup would count on from
 * where it was before, with the same numbers for other words.
 */
export function nextSequence(known: number[], nowMs: number, random: () => number): number {
  const next = Math.max(...known) + 1
  const behindMs = next - nowMs
  return behindMs <= 0 ? nowMs : next + Math.floor(random() * Math.min(behindMs, 1000))
}

/** SHA-256 of the template's canonical JSON, first 16 hex digits: equal templates have equal hashes. */
export function hashTemplate(template: Template): string {
  return createHash('sha256').update(canonicalJson(template)).digest('hex').slice(0, 16)
}

/** JSON with the keys of every object sorted. */
function canonicalJson(value: unknown): string {
  if (Array.isArray(value)) return `[${value.map(canonicalJson).join(',')}]`
  if (value === null || typeof value !== 'object') return JSON.stringify(value)
  const entries = Object.entries(value).filter(([, v]) => v !== undefined)
  entries.sort(([a], [b]) => (a < b ? -1 : 1))
  return `{${entries.map(([k, v]) => `${JSON.stringify(k)}:${canonicalJson(v)}`).join(',')}}`
}

export const signGoal = (payload: GoalPayload, key: SigningKey): string => sign(goalType, encode(payload), key)
export const signIndex = (payload: IndexPayload, key: SigningKey): string => sign(indexType, encode(payload), key)

/** The payload of a goal's envelope. Throws `SignatureInvalid` (ShoalError), or a ZodError for a payload of another version. */
export const openGoal = (envelope: string, keys: VerificationKey[]): GoalPayload =>
  goalPayload.parse(decode(verify(envelope, goalType, keys)))
/** The payload of an index's envelope; throws as `openGoal`. */
export const openIndex = (envelope: string, keys: VerificationKey[]): IndexPayload =>
  indexPayload.parse(decode(verify(envelope, indexType, keys)))

const encode = (payload: unknown): Uint8Array => Buffer.from(JSON.stringify(payload))
const decode = (bytes: Uint8Array): unknown => JSON.parse(Buffer.from(bytes).toString())
