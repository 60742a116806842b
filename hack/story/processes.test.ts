import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { until } from '../parts/process.ts'
import { demoProcesses, endDemoProcesses, marker } from './processes.ts'

const test = suite('processes of a demo')

const shell = (dir: string, script: string) =>
  spawn('sh', ['-c', script], { env: { PATH: process.env.PATH, [marker]: dir }, stdio: 'ignore', detached: true })

test('ends what the demo started and what that started, and nothing of another demo', async () => {
  const other = shell('/tmp/demo-b', 'sleep 60; true')
  const ours = shell('/tmp/demo-a', 'setsid sleep 60 & sleep 60; true')
  await until('three processes run', () => demoProcesses('/tmp/demo-a').length === 3)
  assert.is(await endDemoProcesses('/tmp/demo-a'), 3)
  assert.equal(demoProcesses('/tmp/demo-a'), [])
  await until('its parent has seen the end', () => ours.signalCode !== null)
  assert.is(other.exitCode ?? other.signalCode, null)
  await endDemoProcesses('/tmp/demo-b')
})

test('kills what does not end in time', async () => {
  const deaf = shell('/tmp/demo-c', 'trap "" TERM; while :; do sleep 0.1; done')
  const exited = once(deaf, 'exit')
  await until('it runs', () => demoProcesses('/tmp/demo-c').length > 0)
  await new Promise((resolve) => setTimeout(resolve, 100))
  await endDemoProcesses('/tmp/demo-c', 300)
  assert.equal((await exited)[1], 'SIGKILL')
})

test.run()
