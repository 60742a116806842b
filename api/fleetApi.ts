/**
 * What an agent and its region's fleet server say to each other, as JSON over TLS: POST /v1/agent/poll, POST
 * /v1/agent/announce and GET /v1/agent/descriptor/<namespace>/<artifact> (the .torrent's bytes). The caller is a
 * machine: by an enrolled key (a short-lived token it signs itself) or by its cluster's ServiceAccount token.
 */
import { z } from 'zod'

/** How far a machine is with a goal. RolledBack: its activation failed and the old release runs again. */
export const machineState = z.enum(['Waiting', 'Fetching', 'Fetched', 'Activating', 'Healthy', 'Failed', 'RolledBack'])
export type MachineState = z.infer<typeof machineState>

const goalReport = z.object({
  namespace: z.string(),
  name: z.string(),
  sequence: z.int().describe('The highest sequence of this goal the machine has accepted.'),
  revision: z.int().describe('The revision that `state` is about.'),
  template: z.string().describe('The template that `state` is about.'),
  state: machineState,
  running: z.string().optional().describe('The template that runs and is healthy.'),
  grantId: z.string().optional().describe('The grant this state came of.'),
  fetchedBytes: z.int().optional(),
  sizeBytes: z.int().optional(),
  fetchMs: z.int().min(0).optional().describe('How long the release took, once all of it is there.'),
  reason: z.string().optional(),
  message: z.string().max(1024).optional(),
})
export type GoalReport = z.infer<typeof goalReport>

export const pollRequest = z.object({
  agentVersion: z.string().max(64),
  labels: z.record(z.string().max(317), z.string().max(63)),
  namespaces: z.array(z.string()).max(100).describe('The tenants this machine serves, as enrolled.'),
  goals: z.array(goalReport).max(100),
  waitMs: z
    .int()
    .min(0)
    .max(60_000)
    .optional()
    .describe('How long the answer may take while there is nothing new; not set: none.'),
})
export type PollRequest = z.infer<typeof pollRequest>

/** Permission to activate one revision, once; must be begun within beginWithinMs of the answer. */
const grant = z.object({
  id: z.string(),
  namespace: z.string(),
  name: z.string(),
  sequence: z.int(),
  revision: z.int(),
  template: z.string(),
  beginWithinMs: z.int(),
})
export type Grant = z.infer<typeof grant>

export const pollAnswer = z.object({
  index: z
    .string()
    .optional()
    .describe('The region’s current index, as the hub signed it; with goals the machine does not hold.'),
  goals: z
    .array(z.string())
    .describe('Envelopes of the goals that select this machine, of which it did not report this sequence.'),
  grants: z.array(grant),
  pollAfterMs: z.int(),
})
export type PollAnswer = z.infer<typeof pollAnswer>

export const announceRequest = z.object({
  namespace: z.string(),
  artifact: z.string(),
  infoHash: z.string().regex(/^[0-9a-f]{40}$/),
  peerId: z.string().regex(/^[0-9a-f]{40}$/),
  host: z.string().max(255),
  port: z.int().min(1).max(65_535),
  havePieces: z.int(),
  totalPieces: z.int(),
  pieces: z.base64().optional().describe('Those it has, as a BEP 3 bitfield, while it lacks some.'),
  zone: z.string().max(253).optional(),
  rack: z.string().max(253).optional(),
  connected: z.int().optional().describe('Peers it is connected to.'),
  resting: z.boolean().default(false).describe('It has everything, and no peer can connect to it.'),
  fromPeersBytes: z.int().optional().describe('What peers gave it since its agent started.'),
  originBytes: z.int().default(0).describe('Read from the bucket since the last announce that was answered.'),
  left: z.boolean().default(false).describe('The agent leaves the swarm.'),
})
export type AnnounceRequest = z.infer<typeof announceRequest>

export const announceAnswer = z.object({
  key: z.base64().describe('The swarm key: both ends of a connection prove that they know it.'),
  peers: z.array(z.object({ host: z.string(), port: z.int() })).max(50),
  intervalMs: z.int(),
  seed: z.boolean().default(true).describe('Of one that has everything: peers need it; otherwise it may rest.'),
  origin: z
    .object({ url: z.url(), expiresAtMs: z.int(), forMs: z.int(), pieces: z.array(z.int().min(0)) })
    .optional()
    .describe(
      'Origin lease: for so long this agent may read, by ranges of this presigned URL, these pieces, which no machine said it has.',
    ),
})
export type AnnounceAnswer = z.infer<typeof announceAnswer>

/** What makes a machine a member of its region: a file only the agent's user can read. */
export const enrolment = z.object({
  region: z.string(),
  machine: z.string().optional().describe('With `key`; absent where the agent is known by its cluster’s token.'),
  key: z.string().optional().describe('The machine’s Ed25519 private key, PEM.'),
  cluster: z.string().optional(),
  namespaces: z.array(z.string()).min(1),
  labels: z.record(z.string(), z.string()).default({}),
  env: z
    .record(z.string(), z.string())
    .default({})
    .describe('The machine’s variables, for $(NAME) and the applications.'),
  fleetUrls: z.array(z.url()).min(1),
  fleetCa: z.string().describe('PEM; the only authority the agent trusts for the fleet server.'),
  hubKeys: z.array(z.string()).min(1).describe('The hub’s public keys, PEM.'),
})
export type Enrolment = z.infer<typeof enrolment>
