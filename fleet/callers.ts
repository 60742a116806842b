import { ShoalError } from '../api/errors.ts'
import type { Clock } from '../runtime/clock.ts'
import { type TrustedCluster, verifyMachineToken, verifyServiceAccountToken } from '../runtime/identity.ts'
import { bearerToken } from '../runtime/server.ts'
import type { Database } from '../runtime/sql.ts'
import { publicKeyOf } from './machines.ts'

export interface CallersOptions {
  region: string
  database: Database
  /** The clusters whose nodes are machines of this region. */
  clusters: () => TrustedCluster[]
  clock: Clock
}

const agentServiceAccount = 'shoal-agent'
/** A token that was good is taken for so long without another look: a signature takes as long as the rest of a poll. */
const keptMs = 60_000
const keptTokens = 50_000

/** Which machine calls: by the key it enrolled with, or as a node of a cluster of this region. */
export class Callers {
  readonly #options: CallersOptions
  readonly #kept = new Map<string, { machine: string; untilMs: number }>()

  constructor(options: CallersOptions) {
    this.#options = options
  }

  /** Throws `Unauthorized` or `Forbidden`. */
  async identify(headers: { authorization?: string | undefined }): Promise<string> {
    const { authorization = '' } = headers
    const nowMs = this.#options.clock.monotonic()
    const kept = this.#kept.get(authorization)
    if (kept && kept.untilMs > nowMs) return kept.machine
    const machine = await this.#verify(bearerToken(headers))
    if (this.#kept.size >= keptTokens) this.#kept.clear()
    this.#kept.set(authorization, { machine, untilMs: nowMs + keptMs })
    return machine
  }

  async #verify(token: string): Promise<string> {
    const { region, database, clusters } = this.#options
    try {
      return await verifyMachineToken(token, { region, publicKeyOf: (machine) => publicKeyOf(database, machine) })
    } catch (error) {
      if (!(error instanceof ShoalError && error.code === 'Unauthorized')) throw error
    }
    const { cluster, serviceAccount, node } = await verifyServiceAccountToken(
      token,
      `shoal-region-${region}`,
      clusters(),
    )
    if (serviceAccount !== agentServiceAccount || !node)
      throw new ShoalError('Forbidden', 'the token is not that of an agent on a node')
    return `${cluster}/${node.name}`
  }
}
