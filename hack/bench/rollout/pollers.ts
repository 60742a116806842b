/** Many machines in one process, as light as they can be: a TLS connection each, and polls written by hand. */
import { readFileSync } from 'node:fs'
import { connect, type TLSSocket } from 'node:tls'
import { signMachineToken } from '../../../runtime/identity.ts'

export interface PollersSettings {
  region: string
  port: number
  ca: string
  /** Each machine's, PEM. */
  machineKey: string
  names: string[]
  /** How long each poll may be held; 0: plain polls, one after the other. */
  waitMs: number
  /** Each machine polls through its own connection, or so many share all. */
  connections?: number
  /** What they say they run; absent: they say that they fetch. */
  running?: string
}

/** `connected`: every machine has sent its first poll. `told`: the last of them was told of a revision. */
export type PollersMessage =
  | { is: 'connected' }
  | { is: 'polls'; count: number }
  | { is: 'told'; revision: number; atMs: number[] }

interface Told {
  sequence: number
  revision: number
}

if (import.meta.main) {
  // Whoever started it is gone.
  process.once('disconnect', () => process.exit(1))
  const settings = JSON.parse(readFileSync(process.argv[2] ?? '', 'utf8')) as PollersSettings
  const ca = settings.ca
  let polls = 0
  const told = new Map<number, number[]>()
  const hear = (revision: number) => {
    const at = told.get(revision) ?? []
    told.set(revision, at)
    at.push(Date.now())
    if (at.length === settings.names.length) process.send?.({ is: 'told', revision, atMs: at } satisfies PollersMessage)
  }
  let session: Buffer | undefined
  const requestOf = async (name: string) => {
    const token = await signMachineToken(settings.machineKey, {
      machine: name,
      region: settings.region,
      ttlMs: 290_000,
    })
    return ({ sequence, revision }: Told) => {
      const { running } = settings
      const state =
        running === undefined ? { template: '', state: 'Fetching' } : { template: running, state: 'Healthy', running }
      const report = { namespace: 'demo', name: 'web', sequence, revision, ...state }
      const goals = sequence > 0 ? [report] : []
      const body = JSON.stringify({
        agentVersion: '1',
        labels: { app: 'web' },
        namespaces: ['demo'],
        goals,
        ...(settings.waitMs > 0 && { waitMs: settings.waitMs }),
      })
      return `POST /v1/agent/poll HTTP/1.1\r\nhost: fleet\r\nauthorization: Bearer ${token}\r\ncontent-type: application/json\r\ncontent-length: ${Buffer.byteLength(body)}\r\n\r\n${body}`
    }
  }
  const begin = (names: string[], at: number) =>
    new Promise<void>((connected, failed) => {
      // From several addresses: one has no ports for so many.
      const localAddress = `127.0.0.${2 + (at % 100)}`
      const from = { localAddress }
      const socket: TLSSocket = connect({
        ...from,
        host: '127.0.0.1',
        port: settings.port,
        ca,
        checkServerIdentity: () => undefined,
        ...(session && { session }),
      })
      socket.on('session', (given: Buffer) => {
        session ??= given
      })
      socket.once('error', failed)
      let next = 0
      const machines: { ask: (told: Told) => string; told: Told }[] = []
      let received = ''
      const ask = () => {
        const machine = machines[next]
        if (machine) socket.write(machine.ask(machine.told))
      }
      socket.on('data', (chunk: Buffer) => {
        received += chunk.toString('latin1')
        const end = received.indexOf('\r\n\r\n')
        const length = Number(/content-length: (\d+)/i.exec(received)?.[1])
        if (end < 0 || received.length < end + 4 + length) return
        polls++
        const answer = JSON.parse(received.slice(end + 4)) as { goals: string[] }
        received = ''
        const machine = machines[next]
        for (const envelope of answer.goals) {
          const { payload } = JSON.parse(envelope) as { payload: string }
          const heard = JSON.parse(Buffer.from(payload, 'base64').toString()) as Told
          if (machine && heard.revision > machine.told.revision) hear(heard.revision)
          if (machine) machine.told = heard
        }
        next = (next + 1) % machines.length
        ask()
      })
      socket.once('secureConnect', async () => {
        for (const name of names) machines.push({ ask: await requestOf(name), told: { sequence: 0, revision: 0 } })
        ask()
        connected()
      })
    })
  const { names, connections = names.length } = settings
  const each = Math.ceil(names.length / connections)
  for (let at = 0; at < connections; at += 50)
    await Promise.all(
      Array.from({ length: Math.min(50, connections - at) }, (_, i) =>
        begin(names.slice((at + i) * each, (at + i + 1) * each), at + i),
      ),
    )
  process.send?.({ is: 'connected' } satisfies PollersMessage)
  setInterval(() => process.send?.({ is: 'polls', count: polls } satisfies PollersMessage), 500)
}
