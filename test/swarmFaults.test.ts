import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { runCrowd } from './chaos/crowd.ts'

const test = suite('the swarm under fire')

const seed = Number(process.env.SHOAL_CHAOS_SEED ?? Math.floor(Math.random() * 2 ** 31))
console.log(`  SHOAL_CHAOS_SEED=${seed}`)

test('every machine that survives has the right bytes, whatever is killed, frozen, corrupted, lied about or cut off', async () => {
  const { survivors, happened, convergedMs, corruptMs } = await runCrowd({
    ...{ seed, machines: 10, sizeBytes: 48 << 20, uploadBytesPerSecond: 4 << 20, faultsMs: 15_000 },
  })
  console.log(`  ${[...happened].map(([fault, times]) => `${fault}: ${times}`).join('; ')}`)
  const seconds = (ms: number) => `${(ms / 1000).toFixed(1)} s`
  console.log(
    `  ${survivors} survivors, whole after the last fault: ${seconds(convergedMs)}, who is banned ${seconds(corruptMs)}`,
  )
  assert.ok(survivors >= 6)
})

test.run()
