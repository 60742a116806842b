import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { Spread } from './spread.ts'

const test = suite('spread')

interface Fake {
  name: string
  told: number[]
  has: Set<number>
}

/** A seed of `pieceCount` pieces and peers that know only what they are told. */
function seed(pieceCount: number) {
  const peers: Fake[] = []
  let nowMs = 0
  const spread = new Spread<Fake>({
    pieces: Array.from({ length: pieceCount }, (_, index) => index),
    random: () => 0.5,
    nowMs: () => nowMs,
    isWithPeers: (index) => peers.some((peer) => peer.has.has(index)),
    has: (peer, index) => peer.has.has(index),
    tell: (peer, index) => peer.told.push(index),
  })
  spread.end()
  return {
    spread,
    join(name: string): Fake {
      const peer: Fake = { name, told: [], has: new Set() }
      peers.push(peer)
      spread.joined(peer)
      spread.offer(peer, false)
      return peer
    },
    gain(peer: Fake, index: number): void {
      peer.has.add(index)
      spread.gained(peer, index)
    },
    wait(ms: number): void {
      nowMs += ms
    },
    leave(peer: Fake): void {
      peers.splice(peers.indexOf(peer), 1)
      spread.left(peer)
    },
  }
}

function first(peer: Fake): number {
  const [index] = peer.told
  if (index === undefined) throw new Error(`${peer.name} was told of nothing`)
  return index
}

test('each piece is told to one peer, and its taker is told of another once someone else has it', () => {
  const { spread, join, gain } = seed(20)
  const peers = ['a', 'b', 'c'].map(join)
  const [a, b] = peers as [Fake, Fake]
  assert.is(new Set(peers.map(first)).size, 3, 'all differ')
  gain(a, first(a))
  assert.is(a.told.length, 1, 'having it alone is not enough')
  gain(b, first(a))
  assert.is(a.told.length, 2)
  assert.is(new Set(peers.flatMap((peer) => peer.told)).size, 4)
  assert.not.ok(spread.over)
})

test('a peer that is alone is told of several at once, and of more before it has them all; with another, of one', () => {
  const { spread, join, gain } = seed(20)
  const a = join('a')
  spread.offer(a, true)
  assert.is(a.told.length, 8)
  for (const index of a.told.slice(0, 4)) gain(a, index)
  spread.offer(a, true)
  assert.is(a.told.length, 16)
  const b = join('b')
  for (const index of [...a.told]) gain(b, index)
  assert.is(a.told.length, 17)
})

test('what one that left had been told of is told to another', () => {
  const { spread, join, gain, leave } = seed(2)
  const a = join('a')
  const b = join('b')
  leave(a)
  gain(b, first(b))
  spread.offer(b, true)
  assert.equal([...b.told].sort(), [0, 1])
})

test('one that is alone with us knows of everything after few rounds', () => {
  const { spread, join, gain } = seed(1000)
  const a = join('a')
  let rounds = 0
  for (; a.has.size < 1000 && rounds < 50; rounds++) {
    for (const index of a.told.filter((each) => !a.has.has(each))) gain(a, index)
    spread.offer(a, true)
  }
  assert.is(a.has.size, 1000)
  assert.ok(rounds <= 11, `${rounds} rounds`)
})

test('a piece that only one who left had is told of again', () => {
  const { spread, join, gain, leave } = seed(3)
  const a = join('a')
  const b = join('b')
  gain(a, 0)
  gain(a, 1)
  gain(a, 2)
  for (let i = 0; i < 5; i++) spread.offer(b, true)
  leave(a)
  for (let i = 0; i < 5; i++) {
    for (const index of b.told) gain(b, index)
    spread.offer(b, true)
  }
  assert.is(b.has.size, 3)
})

test('a slow taker holds nobody up for ever: when all is told and our link has room, others are told too', () => {
  const { spread, join, gain } = seed(2)
  const slow = join('slow')
  const quick = join('quick')
  gain(quick, first(quick))
  spread.offer(quick, false)
  assert.is(quick.told.length, 1, 'not while the link is full')
  spread.offer(quick, true)
  assert.equal([...quick.told].sort(), [0, 1])
  gain(quick, first(slow))
  gain(slow, first(quick))
  assert.ok(spread.over)
})

test('takers that fall silent, however many, hold no piece up', () => {
  const { spread, join, wait } = seed(3)
  const silent = ['a', 'b', 'c'].map(join)
  for (let i = 0; i < 3; i++) for (const peer of silent) spread.offer(peer, true)
  const alive = join('alive')
  for (let i = 0; i < 10; i++) {
    wait(1000)
    spread.offer(alive, true)
    for (const index of alive.told) alive.has.add(index)
    for (const index of alive.told) spread.gained(alive, index)
  }
  assert.is(alive.has.size, 3)
})

test('when a piece is lost to us nobody waits for it: all are told of all', () => {
  const { spread, join } = seed(10)
  const peers = ['a', 'b'].map(join)
  spread.abandon()
  for (const peer of [...peers, join('late')]) assert.is(peer.told.length, 10)
  assert.ok(spread.over)
})

test('once all pieces are with others each peer is told of all, once', () => {
  const { spread, join, gain } = seed(3)
  const [a, b] = ['a', 'b'].map(join) as [Fake, Fake]
  for (const index of [0, 1, 2]) {
    gain(a, index)
    gain(b, index)
  }
  while (!spread.over) for (const peer of [a, b]) spread.offer(peer, true)
  const late = join('late')
  spread.offer(late, false)
  assert.equal([...late.told].sort(), [0, 1, 2])
})

test.run()
