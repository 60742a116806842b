import { createHmac } from 'node:crypto'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { until } from '../../hack/parts/process.ts'
import { systemClock } from '../../runtime/clock.ts'
import { createLogger } from '../../runtime/log.ts'
import { Metrics } from '../../runtime/metrics.ts'
import { type AlarmNote, AlarmWebhook } from './alarmWebhook.ts'

const test = suite('alarm webhook')
let answers: number[] = []
const got: { body: string; signature: unknown; type: unknown }[] = []
const receiver = createServer(async (request, response) => {
  const body = (await Array.fromAsync(request)).map(String).join('')
  got.push({ body, signature: request.headers['x-hub-signature-256'], type: request.headers['content-type'] })
  const status = answers.shift() ?? 204
  response.writeHead(status, status === 302 ? { location: '/elsewhere' } : {}).end()
})
await new Promise<void>((resolve) => receiver.listen(0, '127.0.0.1', resolve))
const url = `http://127.0.0.1:${(receiver.address() as AddressInfo).port}/alarms`

const note = (worker: string): AlarmNote => ({
  ...{ alarm: 'WorkerSilent', state: 'raised', worker, class: 'standard', silentSeconds: 1801 },
  ...{ lastSeen: '2026-01-01T00:00:00Z', namespace: 'shoal-system', message: `worker ${worker} is silent` },
})
const paused: number[] = []
/** Running until it is disposed; its pauses are noted, and take no time. */
function start(secret?: string) {
  const stop = new AbortController()
  const metrics = new Metrics()
  const sleep = async (ms: number) => void paused.push(ms)
  const log = createLogger('test', 'silent')
  const webhook = new AlarmWebhook({ url, secret, log, metrics, clock: { ...systemClock, sleep } })
  const running = webhook.run(stop.signal)
  return {
    webhook,
    failures: async () => (await metrics.registry.getSingleMetric('shoal_alarm_webhook_failures_total')?.get())?.values,
    async [Symbol.asyncDispose]() {
      stop.abort()
      await running
    },
  }
}
const workers = () => got.map(({ body }) => (JSON.parse(body) as AlarmNote).worker)

test.before.each(() => {
  answers = []
  got.length = 0
  paused.length = 0
})
test.after(() => void receiver.close())

test('a note is posted as JSON, signed over its bytes', async () => {
  await using one = start('a secret')
  one.webhook.send(note('w1'))
  await until('it is there', () => got.length === 1)
  const [{ body, signature, type } = { body: '' }] = got
  assert.equal(JSON.parse(body), note('w1'))
  assert.is(type, 'application/json')
  assert.is(signature, `sha256=${createHmac('sha256', 'a secret').update(body).digest('hex')}`)
})

test('without a secret it is not signed', async () => {
  await using one = start()
  one.webhook.send(note('w1'))
  await until('it is there', () => got.length === 1)
  assert.is(got[0]?.signature, undefined)
})

test('a receiver that fails is tried again, longer and longer, and the order stays', async () => {
  await using one = start()
  answers = [500, 302, 503]
  for (const worker of ['w1', 'w2']) one.webhook.send(note(worker))
  await until('both are there', () => got.length === 5)
  assert.equal(workers(), ['w1', 'w1', 'w1', 'w1', 'w2'])
  assert.equal(paused, [2000, 4000, 8000])
})

test('after eight attempts a note is given up, counted, and the next one goes out', async () => {
  await using one = start()
  answers = Array.from({ length: 8 }, () => 500)
  for (const worker of ['w1', 'w2']) one.webhook.send(note(worker))
  await until('the second is there', () => got.length === 9)
  assert.is(workers().at(-1), 'w2')
  assert.is((await one.failures())?.[0]?.value, 1)
  assert.is(Math.max(...paused), 60_000)
})

test.run()
