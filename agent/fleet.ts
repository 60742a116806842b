import { readFile } from 'node:fs/promises'
import { ShoalError, Stalled } from '../api/errors.ts'
import {
  type AnnounceAnswer,
  type AnnounceRequest,
  announceAnswer,
  type PollAnswer,
  type PollRequest,
  pollAnswer,
} from '../api/fleetApi.ts'
import { ApiClient } from '../runtime/apiClient.ts'
import { signMachineToken } from '../runtime/identity.ts'
import type { Membership } from './enrolment.ts'

const tokenTtlMs = 120_000

/** The region's fleet server, over TLS that trusts only the enrolment's authority; its addresses are tried in turn. */
export class FleetClient implements AsyncDisposable {
  readonly #clients: ApiClient[]
  readonly #membership: Membership
  readonly #tokenFile: string | undefined
  #current = 0
  #token: { text: string; untilMs: number } | undefined

  /** @throws Stalled `ConfigInvalid` without TLS or without an identity. */
  constructor(membership: Membership, tokenFile: string | undefined) {
    if (membership.key === undefined && tokenFile === undefined)
      throw new Stalled('ConfigInvalid', 'the enrolment has no key, and no token file is given')
    for (const url of membership.fleetUrls)
      if (!url.startsWith('https://'))
        throw new Stalled('ConfigInvalid', `${url}: the fleet server is spoken to over TLS only`)
    this.#membership = membership
    this.#tokenFile = tokenFile
    const { fleetCa: ca } = membership
    this.#clients = membership.fleetUrls.map((baseUrl) => new ApiClient({ baseUrl, ca, token: () => this.#identify() }))
  }

  /** When the server is away the next poll goes to another address: at once, all that it held would be there together. */
  async poll(body: PollRequest, signal: AbortSignal): Promise<PollAnswer> {
    const timeoutMs = (body.waitMs ?? 0) + 15_000
    const client = this.#clients[this.#current] as ApiClient
    try {
      return await client.request('POST', '/v1/agent/poll', { body, schema: pollAnswer, signal, timeoutMs })
    } catch (error) {
      if (isAway(error)) this.#turn()
      throw error
    }
  }

  announce(body: AnnounceRequest, signal: AbortSignal): Promise<AnnounceAnswer> {
    return this.#ask((client) => client.request('POST', '/v1/agent/announce', { body, schema: announceAnswer, signal }))
  }

  descriptor(namespace: string, artifact: string, signal: AbortSignal): Promise<Uint8Array> {
    const path = `/v1/agent/descriptor/${encodeURIComponent(namespace)}/${encodeURIComponent(artifact)}`
    return this.#ask((client) => client.bytes('GET', path, { signal, timeoutMs: 60_000 }))
  }

  /** The address that answered last; the others when it does not. An answer that says no is an answer. */
  async #ask<T>(ask: (client: ApiClient) => Promise<T>): Promise<T> {
    let failure: unknown
    for (let tries = 0; tries < this.#clients.length; tries++) {
      const client = this.#clients[this.#current] as ApiClient
      try {
        return await ask(client)
      } catch (error) {
        failure = error
        if (!isAway(error)) break
        this.#turn()
      }
    }
    throw failure
  }

  #turn(): void {
    this.#current = (this.#current + 1) % this.#clients.length
  }

  async #identify(): Promise<string> {
    const { key, machine = '', region } = this.#membership
    if (key === undefined) return (await readFile(this.#tokenFile ?? '', 'utf8')).trim()
    if (!this.#token || this.#token.untilMs < performance.now()) {
      const text = await signMachineToken(key, { machine, region, ttlMs: tokenTtlMs })
      this.#token = { text, untilMs: performance.now() + tokenTtlMs / 2 }
    }
    return this.#token.text
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all(this.#clients.map((client) => client[Symbol.asyncDispose]()))
  }
}

const isAway = (error: unknown): boolean =>
  error instanceof ShoalError && (error.code === 'Unavailable' || error.code === 'Timeout')
