/** The swarm under fire, at length: one crowd after another, each with a seed of its own. */
import { randomInt } from 'node:crypto'
import { Command } from 'commander'
import { runCrowd } from '../test/chaos/crowd.ts'

const { seconds, seed, machines, mebibytes } = new Command('faults')
  .description(
    'Machines fetch an artifact while they, the trackers, the bucket and the database are killed and frozen. A failure tells its seed.',
  )
  .option('--seconds <n>', 'at least; one crowd runs in any case', '300')
  .option('--seed <n>', 'of the first crowd; the next ones count on from it')
  .option('--machines <n>', 'in each crowd', '10')
  .option('--mebibytes <n>', 'to fetch', '48')
  .parse()
  .opts<{ seconds: string; seed?: string; machines: string; mebibytes: string }>()

const untilMs = performance.now() + 1000 * Number(seconds)
const first = Number(seed ?? randomInt(2 ** 31))
let crowds = 0
for (; crowds === 0 || performance.now() < untilMs; crowds++) {
  const options = { seed: first + crowds, machines: Number(machines), sizeBytes: Number(mebibytes) << 20 }
  try {
    const { survivors, happened, convergedMs, corruptMs } = await runCrowd({
      ...{ ...options, uploadBytesPerSecond: 4 << 20, faultsMs: 15_000 },
    })
    const faults = [...happened].map(([fault, times]) => `${fault} ${times}`).join(', ')
    const took = [convergedMs, corruptMs].map((ms) => (ms / 1000).toFixed(1))
    console.log(
      `seed ${options.seed}: ${survivors} survivors whole ${took[0]} s after the last fault, who is banned ${took[1]} s (${faults})`,
    )
  } catch (error) {
    console.error(error)
    console.error(`again: ./hack/faults --seconds 0 --seed ${options.seed}`)
    process.exit(1)
  }
}
console.log(`${crowds} crowds, every survivor whole and right`)
