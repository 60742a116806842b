import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { Tracker } from './tracker.ts'

const test = suite('reach')
const infoHash = 'a'.repeat(40)

/** Machines of a swarm of 16 pieces, each with its first so many; undefined: it does not say. */
function swarm(...had: (number | undefined)[]): Tracker {
  const tracker = new Tracker()
  for (const [i, count] of had.entries()) {
    const bits = (1n << 16n) - (1n << BigInt(16 - (count ?? 0)))
    const pieces = count === undefined ? undefined : Buffer.from(bits.toString(16).padStart(4, '0'), 'hex')
    const place = { machine: `m${i}`, host: '10.0.0.1', port: 1000 + i }
    tracker.announce({ infoHash, ...place, completed: count === 16, pieces, pieceCount: 16 }, 0)
  }
  return tracker
}

test('an artifact has come as far as its rarest piece, and as its machines', () => {
  const reach = swarm(16, 16, 8, 8, 8, 8, 8, 4, 4, 2).reach(infoHash, 16)
  assert.equal(reach, {
    ...{ complete: 2, fetching: 8, fewestCopies: 2, missingPieces: 0 },
    had: { p50: 50, p90: 25, last: 12 },
  })
})

test('a machine that does not say what it has counts as one without anything', () => {
  assert.equal(swarm(undefined, 8).reach(infoHash, 16), {
    ...{ complete: 0, fetching: 2, fewestCopies: 0, missingPieces: 8 },
    had: { p50: 50, p90: 0, last: 0 },
  })
})

test('everyone who has all of it has all of it', () => {
  assert.equal(swarm(16, 16).reach(infoHash, 16)?.had, { p50: 100, p90: 100, last: 100 })
  assert.is(new Tracker().reach(infoHash, 16), undefined)
})

test.run()
