import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { SwarmSimulation } from './swarmSimulation.ts'

const test = suite('swarm in simulated time')

/** The k-th hundredth of rising times. */
const percentile = (times: number[], k: number): number => times[Math.ceil((times.length * k) / 100) - 1] ?? Number.NaN

function crowd(o: { seed: number; machines: number; zones?: number; dying?: number }) {
  const sizeBytes = 2e9
  const bytesPerSecond = 1.25e9
  const simulation = new SwarmSimulation({
    ...{ zones: 1, machinesPerRack: 20, startWithinMs: 500, dying: 0.02, slow: 0.01, originBytesPerSecond: 400e6 },
    ...{ sizeBytes, bytesPerSecond, pieceLengthBytes: 4 << 20, ...o },
  })
  return { ...simulation.run(), floorMs: (sizeBytes / bytesPerSecond) * 1000 }
}

test('every machine that lives gets all of it, soon, and the bucket is read once', () => {
  for (let seed = 1; seed <= 12; seed++) {
    const { fastMs, floorMs, originCopies } = crowd({ seed, machines: 60 })
    assert.ok(fastMs.length >= 50)
    // a machine that read from the bucket may be slow, or die with what only it has
    const boundMs = 2 * floorMs + 10_000
    assert.ok(percentile(fastMs, 100) < boundMs, `seed ${seed}: ${percentile(fastMs, 100)} of ${floorMs} ms`)
    assert.ok(originCopies <= 1.2, `seed ${seed}: ${originCopies} copies`)
  }
})

test('though one in ten loses its power, nobody waits until it is noticed that all stand still', () => {
  for (let seed = 1; seed <= 12; seed++) {
    const { fastMs, originCopies } = crowd({ seed, machines: 60, dying: 0.1 })
    assert.ok(percentile(fastMs, 100) < 20_000, `seed ${seed}: ${percentile(fastMs, 100)} ms`)
    assert.ok(originCopies <= 1.2, `seed ${seed}: ${originCopies} copies`)
  }
})

test('few bytes cross zones, and no zone waits for long', () => {
  const { fastMs, floorMs, crossZone } = crowd({ seed: 1, machines: 150, zones: 3 })
  assert.ok(crossZone < 0.15, `${crossZone}`)
  assert.ok(percentile(fastMs, 99) < 2 * floorMs)
})

test('a seed gives the same run again', () => {
  assert.equal(crowd({ seed: 7, machines: 20 }), crowd({ seed: 7, machines: 20 }))
})

test.run()
