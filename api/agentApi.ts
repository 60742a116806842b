/** What an agent says on its own machine, at the `url` in its `agent.json`: GET /v1/swarms, as JSON. */
import { z } from 'zod'

const bytes = z.int()

/**
 * One release and its swarm. Waiting: nothing is fetched, for the reason given. Fetching. Seeding: whole, and given to
 * peers. Resting: whole, and no peer needs it.
 */
const swarmView = z.object({
  namespace: z.string(),
  artifact: z.string(),
  infoHash: z.string(),
  state: z.enum(['Waiting', 'Fetching', 'Seeding', 'Resting']),
  sizeBytes: bytes,
  haveBytes: bytes.describe('Verified and on disk.'),
  peers: z.int().describe('Connected to.'),
  receivedBytesPerSecond: z.number(),
  sentBytesPerSecond: z.number(),
  fromPeersBytes: bytes.describe('Of what was received since the agent started; so are the next ones.'),
  fromOriginBytes: bytes.describe('Read from the bucket.'),
  fromLocalBytes: bytes.describe('Releases on disk had it.'),
  wastedBytes: bytes.describe('Came, and was of no use.'),
  sentBytes: bytes,
  secondsLeft: z.number().optional().describe('At the present rate.'),
  reason: z.string().optional().describe('Why the last try failed: a code.'),
  message: z.string().optional(),
})
export type SwarmView = z.infer<typeof swarmView>

export const swarmsAnswer = z.object({ swarms: z.array(swarmView) })
export type SwarmsAnswer = z.infer<typeof swarmsAnswer>

/** `agent.json` in an agent's data folder. */
export const agentFile = z.object({ pid: z.int(), url: z.url(), swarmPort: z.int() })
