import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { OriginLeases } from './originLeases.ts'
import { Tracker } from './tracker.ts'

const test = suite('origin leases')
const leaseMs = 15_000
const totalPieces = 64
const settledMs = 10_000

/** A tracker, its leases, and machines that announce to both. */
function region() {
  const tracker = new Tracker({ random: () => 0.5 })
  const leases = new OriginLeases({ tracker, leaseMs })
  return {
    tracker,
    leases,
    /** @returns the parts it may read. */
    announce(machine: string, o: { pieces?: number[]; nowMs?: number; infoHash?: string } = {}): number[] {
      const { pieces = [], nowMs = 0, infoHash = 'a'.repeat(40) } = o
      const bits = new Uint8Array(totalPieces / 8)
      for (const index of pieces) bits[index >> 3] = (bits[index >> 3] ?? 0) | (0x80 >> (index & 7))
      const completed = pieces.length === totalPieces
      tracker.announce(
        { infoHash, machine, host: machine, port: 1, completed, pieces: bits, pieceCount: totalPieces },
        nowMs,
      )
      return leases.request({ infoHash, machine, havePieces: pieces.length, totalPieces }, nowMs)?.parts ?? []
    },
  }
}

const all = Array.from({ length: totalPieces }, (_, index) => index)

test('no part is lent twice, and the first to come does not get all of them', () => {
  const { announce } = region()
  const lent = Array.from({ length: 20 }, (_, i) => announce(`m${i}`))
  assert.equal(lent.flat(), [0, 1, 2, 3, 4, 5, 6, 7])
  assert.ok(lent.every((parts) => parts.length <= 1))
})

test('a machine that stays alone reads everything; when others come it keeps its share', () => {
  const { announce } = region()
  assert.is(announce('a').length, 1)
  assert.is(announce('a', { nowMs: settledMs }).length, 8)
  announce('b', { nowMs: settledMs })
  assert.is(announce('a', { nowMs: settledMs + 1 }).length, 4)
  assert.is(announce('b', { nowMs: settledMs + 2 }).length, 4)
})

test('a part is lent again when its machine falls silent or leaves', () => {
  const { announce, leases } = region()
  for (let i = 0; i < 8; i++) announce(`m${i}`)
  for (let i = 1; i < 8; i++) announce(`m${i}`, { nowMs: leaseMs - 1 })
  assert.equal(announce('late', { nowMs: leaseMs }), [0])
  leases.release('a'.repeat(40), 'm3')
  assert.equal(announce('later', { nowMs: leaseMs }), [3])
})

test('nothing is lent of what machines said they have; again when they are gone', () => {
  const { announce, tracker } = region()
  announce('seed', { pieces: all })
  assert.equal(announce('a', { nowMs: 1 }), [])
  tracker.forget('a'.repeat(40), 'seed')
  assert.equal(announce('half', { pieces: all.filter((index) => index % 2 === 0), nowMs: 2 }), [1])
  assert.equal(announce('b', { nowMs: 3 }), [3])
})

test('a machine that gets nothing for two leases may read what others are said to have', () => {
  const { announce } = region()
  announce('seed', { pieces: all })
  assert.equal(announce('a', { nowMs: 0 }), [])
  assert.equal(announce('a', { nowMs: 2 * leaseMs, pieces: [1] }), [])
  announce('seed', { pieces: all, nowMs: 3 * leaseMs })
  assert.equal(announce('a', { nowMs: 4 * leaseMs, pieces: [1] }), [])
  assert.ok(announce('a', { nowMs: 4 * leaseMs + 1, pieces: [1] }).length > 0)
})

test('there is a cap over all artifacts', () => {
  const { announce } = region()
  let lent = 0
  for (let artifact = 0; artifact < 20; artifact++)
    for (let i = 0; i < 8; i++) lent += announce(`m${i}`, { infoHash: `${artifact}`.padStart(40, '0') }).length
  assert.is(lent, 64)
})

test.run()
