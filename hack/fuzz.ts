/**
 * Fuzzing at length. The targets run in a worker thread with little memory, so that one that hangs or takes too much is
 * noticed, and its seed told.
 */
import { randomInt } from 'node:crypto'
import { isMainThread, parentPort, Worker, workerData } from 'node:worker_threads'
import { Command } from 'commander'
import { openTargets } from '../test/fuzz/targets.ts'

/** A batch takes some seconds. */
const HUNG_MS = 120_000
const HEAP_MEBIBYTES = 512

interface Batch {
  name: string
  seed: number
  /** So far, of all batches. */
  runs: number
}

interface Options {
  seconds: string
  seed?: string
  target?: string
}

async function work({ seconds, seed, target }: Options): Promise<void> {
  await using targets = await openTargets()
  const chosen = targets.all.filter(({ name }) => target === undefined || name === target)
  if (chosen.length === 0) throw new Error(`the targets are: ${targets.all.map(({ name }) => name).join(', ')}`)
  const untilMs = performance.now() + 1000 * Number(seconds)
  let runs = 0
  for (let round = 0; round === 0 || performance.now() < untilMs; round++)
    for (const each of chosen) {
      const batch: Batch = { name: each.name, seed: (Number(seed ?? randomInt(2 ** 31)) + round) % 2 ** 31, runs }
      parentPort?.postMessage(batch)
      const failure = await each.check({ seed: batch.seed, runs: each.runs })
      if (failure !== undefined) throw new Error(failure)
      runs += each.runs
    }
  console.log(`${runs} runs, nothing found`)
}

function watch(options: Options): void {
  const worker = new Worker(new URL(import.meta.url), {
    workerData: options,
    resourceLimits: { maxOldGenerationSizeMb: HEAP_MEBIBYTES },
  })
  let batch: Batch | undefined
  const give = (why: string) => {
    console.error(why)
    if (batch) console.error(`again: ./hack/fuzz --target '${batch.name}' --seed ${batch.seed}`)
    process.exit(1)
  }
  const hung = setTimeout(() => give('it hangs'), HUNG_MS)
  worker.on('message', (begun: Batch) => {
    batch = begun
    hung.refresh()
  })
  worker.on('error', (error) => give(error instanceof Error ? (error.stack ?? error.message) : String(error)))
  worker.on('exit', () => clearTimeout(hung))
}

if (isMainThread)
  watch(
    new Command('fuzz')
      .description('Feeds what takes bytes from strangers with mutated and random input. A failure tells its seed.')
      .option('--seconds <n>', 'at least; every target runs once in any case', '60')
      .option('--seed <n>', 'of the first round; the next ones count on from it')
      .option('--target <name>', 'only this one')
      .parse()
      .opts<Options>(),
  )
else await work(workerData as Options)
