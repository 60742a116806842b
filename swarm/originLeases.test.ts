import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { OriginLeases } from './originLeases.ts'
import { Tracker } from './tracker.ts'

const test = suite('origin leases')
const leaseMs = 5000
/** In 16 parts of 4 pieces. */
const totalPieces = 64
const parts = 16
const all = Array.from({ length: totalPieces }, (_, index) => index)
const none: number[] = []
const partOf = (part: number) => all.filter((index) => index % parts === part)
const partsIn = (pieces: number[]) => [...new Set(pieces.map((index) => index % parts))]

/** A tracker, its leases, and machines that announce to both. */
function region() {
  const tracker = new Tracker({ random: () => 0.5 })
  const leases = new OriginLeases({ tracker, leaseMs })
  return {
    tracker,
    leases,
    /** @returns the pieces it may read. */
    announce(
      machine: string,
      o: { has?: number[]; progress?: number; nowMs?: number; infoHash?: string } = {},
    ): number[] {
      const { has = none, nowMs = 0, infoHash = 'a'.repeat(40) } = o
      const bits = new Uint8Array(totalPieces / 8)
      for (const index of has) bits[index >> 3] = (bits[index >> 3] ?? 0) | (0x80 >> (index & 7))
      const completed = has.length === totalPieces
      const reads = leases.reads(infoHash, machine, totalPieces)
      tracker.announce(
        { infoHash, machine, host: machine, port: 1, completed, reads, pieces: bits, pieceCount: totalPieces },
        nowMs,
      )
      const { progress = has.length } = o
      return leases.request({ infoHash, machine, havePieces: has.length, totalPieces, progress }, nowMs)
    },
  }
}

test('the first eight read a part each, and no part is lent twice', () => {
  const { announce } = region()
  const lent = Array.from({ length: 20 }, (_, i) => announce(`m${i}`))
  assert.equal(lent.slice(0, 8), [0, 1, 2, 3, 4, 5, 6, 7].map(partOf))
  assert.equal(lent.slice(8).flat(), none)
})

test('who has read all it was lent gets twice as much; who is slow gets no more, and reads only what is not there', () => {
  const { announce } = region()
  const quick = announce('quick')
  const slow = announce('slow')
  announce('third')
  const more = announce('quick', { has: quick, nowMs: 100 })
  assert.is(partsIn(more).length, 2)
  assert.is(partsIn(announce('quick', { has: [...quick, ...more], nowMs: 200 })).length, 4)
  assert.equal(announce('slow', { has: slow.slice(0, 1), nowMs: 200 }), slow.slice(1))
})

test('a machine that is alone reads ever more at once; when others come it keeps its share', () => {
  const { announce } = region()
  const has: number[] = []
  let lent = announce('a')
  for (let i = 0; i < 3; i++) {
    has.push(...lent)
    lent = announce('a', { has, nowMs: i })
  }
  assert.is(partsIn(lent).length, 8)
  for (const other of ['b', 'c', 'd']) announce(other, { nowMs: 10 })
  assert.is(partsIn(announce('a', { has, nowMs: 11 })).length, 4)
})

test('a part is lent again when its machine falls silent or leaves, and what it alone had with it', () => {
  const { announce, leases } = region()
  const lent = announce('m0')
  announce('m0', { has: lent, nowMs: 100 })
  for (let i = 1; i < 8; i++) announce(`m${i}`, { nowMs: 200 })
  // one that reads announces each second: three of those are missed
  assert.equal(announce('m1', { nowMs: 3000 }), partOf(3))
  assert.ok(!announce('late', { nowMs: 3000 }).includes(0), 'not yet')
  for (let i = 1; i < 8; i++) announce(`m${i}`, { nowMs: 4000 })
  assert.equal(announce('late', { nowMs: 100 + leaseMs }), partOf(0))
  leases.release('a'.repeat(40), 'm3')
  assert.equal(announce('later', { nowMs: 100 + leaseMs }), partOf(1))
})

test('what one machine could not read in a long time another may try; alone it goes on', () => {
  const { announce } = region()
  let nowMs = 0
  for (; nowMs <= 20_000; nowMs += 1000) assert.equal(announce('a', { nowMs }), partOf(0))
  announce('b', { nowMs })
  assert.equal(announce('a', { nowMs }), partOf(2), 'handed over')
  assert.equal(announce('c', { nowMs }), partOf(0))
})

test('nothing is lent of what machines said they have; again when they are gone', () => {
  const { announce, tracker } = region()
  announce('seed', { has: all })
  assert.equal(announce('a', { nowMs: 1 }), none)
  tracker.forget('a'.repeat(40), 'seed')
  assert.equal(announce('half', { has: all.filter((index) => index % 2 === 0), nowMs: 2 }), partOf(1))
  assert.equal(announce('b', { nowMs: 3 }), partOf(3))
})

test('a machine whose peers give it nothing for 15 s may read what it lacks though others are said to have it', () => {
  const { announce } = region()
  announce('seed', { has: all })
  const has = all.slice(0, 56)
  assert.equal(announce('a', { nowMs: 0, has: has.slice(1) }), none)
  assert.equal(announce('a', { nowMs: 5000, has }), none)
  announce('seed', { has: all, nowMs: 15_000 })
  assert.equal(announce('a', { nowMs: 20_000, has }), none)
  assert.equal(announce('a', { nowMs: 20_001, has }), [56])
  const read = all.slice(0, 57)
  assert.equal(announce('a', { nowMs: 20_002, has: read, progress: 56 }), [57, 58], 'what it read does not end that')
  assert.equal(announce('a', { nowMs: 20_003, has: read, progress: 50 }), [57, 58], 'nor what peers sent wrong')
  assert.equal(announce('a', { nowMs: 20_004, has: all.slice(0, 58) }), none, 'what a peer gave it does')
})

test('there is a cap over all artifacts', () => {
  const { announce } = region()
  let readers = 0
  for (let artifact = 0; artifact < 20; artifact++)
    for (let i = 0; i < 8; i++)
      if (announce(`m${i}`, { infoHash: `${artifact}`.padStart(40, '0') }).length > 0) readers++
  assert.is(readers, 64)
})

test.run()
