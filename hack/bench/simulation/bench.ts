/**
 * A crowd in simulated time, with the real picker, tracker and origin leases: 10 GB to machines with links of
 * 10 Gbit/s in three zones, of which 2 % die on the way and 1 % have a tenth of the link. Exits 1 when a target is missed.
 */
import { Command, InvalidArgumentError } from 'commander'
import { type SimulationResult, SwarmSimulation } from '../../../test/simulation/swarmSimulation.ts'

const { quick, seed } = new Command('run')
  .description('Simulates 1,000 and 20,000 machines that fetch 10 GB; about an hour and a half on one core.')
  .option('--quick', 'under a minute: 150 and 450 machines, 8 GB')
  .option(
    '--seed <n>',
    'the same number gives the same run',
    (text) => {
      if (!/^\d+$/.test(text)) throw new InvalidArgumentError('a whole number')
      return Number(text)
    },
    1,
  )
  .parse()
  .opts<{ quick?: boolean; seed: number }>()

const [few, many] = quick ? [150, 450] : [1000, 20_000]
const sizeBytes = quick ? 8e9 : 10e9
const bytesPerSecond = 1.25e9
const floorMs = (sizeBytes / bytesPerSecond) * 1000
let missed = false

function row(what: string, figure: number, o: { most: number; unit: string; peer?: string }): void {
  const ok = figure <= o.most
  missed ||= !ok
  console.log(`${ok ? '✓' : '✗'} ${what}: ${figure.toFixed(3)}${o.unit} (≤ ${o.most}${o.unit}${o.peer ?? ''})`)
}

/** The k-th hundredth of rising times, by the least time. */
const at = (times: number[], k: number): number => (times[Math.ceil((times.length * k) / 100) - 1] ?? 0) / floorMs

function crowd(machines: number): SimulationResult {
  const beganMs = performance.now()
  const simulation = new SwarmSimulation({
    ...{ seed, machines, sizeBytes, pieceLengthBytes: 4 << 20, bytesPerSecond, zones: 3, machinesPerRack: 40 },
    // one connection to a bucket gives some 100 MB/s; a machine has four
    ...{ startWithinMs: 500, dying: 0.02, slow: 0.01, originBytesPerSecond: 100e6 },
    onProgress: ({ simulatedMs, complete, gotBytes }) => {
      const share = ((100 * gotBytes) / (machines * sizeBytes)).toFixed(1)
      const minutes = ((performance.now() - beganMs) / 60_000).toFixed(1)
      if (process.stderr.isTTY)
        console.error(
          `${machines} machines: ${(simulatedMs / 1000).toFixed(2)} s simulated, ${share} %, ${complete} complete, ${minutes} min`,
        )
    },
  })
  const result = simulation.run()
  const { fastMs, slowMs, wasted, peersPerMachine, events } = result
  const [p50, p90, p99, last] = [50, 90, 99, 100].map((k) => at(fastMs, k).toFixed(3))
  console.log(
    `${machines} machines, seed ${seed}: ${fastMs.length} at full speed p50 ${p50}x, p90 ${p90}x, p99 ${p99}x, last ${last}x of ${floorMs / 1000} s; ` +
      `${slowMs.length} slow; ${peersPerMachine.toFixed(1)} peers each, ${(100 * wasted).toFixed(2)} % came twice; ` +
      `${events} events in ${((performance.now() - beganMs) / 1000).toFixed(0)} s, ${Math.round(process.memoryUsage().rss / 1e6)} MB`,
  )
  return result
}

const small = crowd(few)
const large = crowd(many)
row('machines at full speed, p50 / least time', at(large.fastMs, 50), { most: 1.15, unit: 'x' })
row('machines at full speed, p99 / least time', at(large.fastMs, 99), { most: 1.3, unit: 'x' })
row('p99 / p50', at(large.fastMs, 99) / at(large.fastMs, 50), { most: 1.3, unit: 'x', peer: '; Kraken 1.8x' })
row('slow machines, the last / their least time', at(large.slowMs, 100) / 10, { most: 1.1, unit: 'x' })
row('read from the bucket / size', large.originCopies, { most: 1.2, unit: ' copies' })
row(`p99 of ${many} / p99 of ${few} machines`, at(large.fastMs, 99) / at(small.fastMs, 99), { most: 1.05, unit: '' })
row('bytes that crossed zones', 100 * large.crossZone, { most: 5, unit: ' %' })
process.exit(missed ? 1 : 0)
