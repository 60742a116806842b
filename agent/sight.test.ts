import { execFile } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { agentFile, type SwarmView, swarmsAnswer } from '../api/agentApi.ts'
import { until } from '../hack/parts/process.ts'
import { TestRegion } from './fixture.ts'

const test = suite('agent sight')
const main = join(import.meta.dirname, '../main.ts')
const top = (...args: string[]) => promisify(execFile)(process.execPath, [main, 'swarm', 'top', '--once', ...args])

test('a download is seen while it goes on, and what it was made of afterwards', async () => {
  await using world = await TestRegion.create(8_000_000)
  const machine = await world.machine('m1')
  const fill = randomBytes(24 << 20)
  const one = await world.release('one', { fill })
  world.deploy(1, one)
  machine.start()
  const seen = async (): Promise<SwarmView | undefined> => {
    try {
      const { stdout } = await top('--json', '--data-dir', machine.dataDir)
      return swarmsAnswer.parse(JSON.parse(stdout)).swarms[0]
    } catch {
      return undefined
    }
  }
  const half = await until('it is seen half way', async () => {
    const view = await seen()
    return view?.state === 'Fetching' && view.haveBytes > 0 && view.receivedBytesPerSecond > 0 ? view : undefined
  })
  assert.ok(half.peers > 0 && half.haveBytes < half.sizeBytes && (half.secondsLeft ?? 0) > 0, JSON.stringify(half))
  await machine.runs('one')
  const whole = await until('it is seen whole', async () => {
    const view = await seen()
    return view?.state === 'Seeding' || view?.state === 'Resting' ? view : undefined
  })
  assert.is(whole.haveBytes, one.template.artifact.sizeBytes)
  assert.is(whole.fromPeersBytes + whole.fromOriginBytes + whole.fromLocalBytes, whole.sizeBytes)
  const { stdout } = await top('--data-dir', machine.dataDir)
  assert.match(stdout, /^ARTIFACT +STATE +HAS .*\nteam\/web-one +(Seeding|Resting) +100% /, stdout)

  const { url } = agentFile.parse(JSON.parse(await readFile(join(machine.dataDir, 'agent.json'), 'utf8')))
  const received = await until('the metrics have it', async () => {
    const text = await (await fetch(`${url}/metrics`)).text()
    const [, bytes] = /shoal_swarm_received_bytes_total\{source="peers"\} (\d+)/.exec(text) ?? []
    return Number(bytes) === whole.fromPeersBytes ? text : undefined
  })
  assert.match(received, /shoal_swarm_missing_bytes 0\n/)
  await machine.agent?.stop()
  const failed = await top('--data-dir', machine.dataDir).catch((error: { stderr: string }) => error)
  assert.match(failed.stderr, /No agent answers/)
})

test.run()
