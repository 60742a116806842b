import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { agentFile, type SwarmsAnswer, type SwarmView, swarmsAnswer } from '../../api/agentApi.ts'
import { ShoalError, Transient } from '../../api/errors.ts'
import { ApiClient } from '../../runtime/apiClient.ts'
import { lineOf, size, span, widthsOf } from '../table.ts'
import { stopSignal } from './session.ts'

const EVERY_MS = 1000

interface TopOptions {
  dataDir: string
  agent?: string
  once?: boolean
  json?: boolean
}

/** @throws ShoalError `NotFound` (no agent has run in that folder), Transient `Unavailable` (none answers) */
export async function top({ dataDir, agent, once, json }: TopOptions): Promise<void> {
  const signal = stopSignal()
  await using client = new ApiClient({ baseUrl: agent ?? (await urlIn(dataDir)), timeoutMs: 5000 })
  const show = ({ swarms }: SwarmsAnswer) => {
    if (json) console.log(JSON.stringify({ swarms }))
    else console.log(`${process.stdout.isTTY && !once ? '\x1b[H\x1b[J' : ''}${table(swarms)}`)
  }
  while (!signal.aborted) {
    show(await ask(client))
    if (once) return
    await sleep(EVERY_MS, undefined, { signal }).catch(() => {})
  }
}

async function ask(client: ApiClient): Promise<SwarmsAnswer> {
  try {
    return await client.request('GET', '/v1/swarms', { schema: swarmsAnswer })
  } catch (error) {
    throw new Transient('Unavailable', `No agent answers: ${(error as Error).message}.`, { cause: error })
  }
}

async function urlIn(dataDir: string): Promise<string> {
  const path = join(dataDir, 'agent.json')
  try {
    return agentFile.parse(JSON.parse(await readFile(path, 'utf8'))).url
  } catch (error) {
    const hint = 'say where the agent keeps its data by --data-dir, or where it answers by --agent'
    throw new ShoalError('NotFound', `No agent has left its address in ${path}: ${hint}.`, { cause: error })
  }
}

function table(swarms: SwarmView[]): string {
  if (swarms.length === 0) return 'no goal names a release for this machine'
  const rows = swarms.map((swarm) => [
    ...[`${swarm.namespace}/${swarm.artifact}`, swarm.reason ?? swarm.state, share(swarm.haveBytes, swarm.sizeBytes)],
    ...[size(swarm.sizeBytes), `${size(swarm.receivedBytesPerSecond)}/s`, `${size(swarm.sentBytesPerSecond)}/s`],
    ...[String(swarm.peers), size(swarm.fromPeersBytes), size(swarm.fromOriginBytes), size(swarm.fromLocalBytes)],
    ...[size(swarm.sentBytes), swarm.secondsLeft === undefined ? '-' : span(swarm.secondsLeft * 1000)],
  ])
  const head = [
    'ARTIFACT',
    'STATE',
    'HAS',
    'SIZE',
    'DOWN',
    'UP',
    'PEERS',
    'FROM PEERS',
    'BUCKET',
    'DISK',
    'SENT',
    'LEFT',
  ]
  const all = [head, ...rows]
  const widths = widthsOf(all)
  return all.map((row) => lineOf(row, widths)).join('\n')
}

/** Rounded down: what lacks a byte is not all there. */
const share = (part: number, whole: number): string => `${whole === 0 ? 100 : Math.floor((100 * part) / whole)}%`
