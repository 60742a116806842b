import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { type Announce, Tracker } from './tracker.ts'

const test = suite('tracker')
const infoHash = 'a'.repeat(40)

function from(machine: number, o: Partial<Announce> = {}): Announce {
  const host = `10.0.${machine >> 8}.${machine & 255}`
  return { infoHash, machine: `m${machine}`, host, port: 6881, completed: false, ...o }
}

test('an answer names different peers, never the one who asks, never more than the handout', () => {
  const tracker = new Tracker({ handout: 10 })
  for (let machine = 0; machine < 100; machine++) tracker.announce(from(machine), 0)
  for (let machine = 0; machine < 100; machine++) {
    const hosts = tracker.announce(from(machine), 1).peers.map((peer) => peer.host)
    assert.is(hosts.length, 10)
    assert.is(new Set(hosts).size, 10)
    assert.not.ok(hosts.includes(from(machine).host))
  }
})

test('who is complete is handed nobody, and seeds are a third of a handout at most while there are others', () => {
  const tracker = new Tracker({ handout: 9 })
  for (let machine = 0; machine < 50; machine++) tracker.announce(from(machine, { completed: machine < 25 }), 0)
  assert.equal(tracker.announce(from(0, { completed: true }), 1).peers, [])
  const seeds = tracker.announce(from(30), 1).peers.filter((peer) => Number(peer.host.split('.')[3]) < 25)
  assert.is(seeds.length, 3)
  assert.equal(tracker.counts(infoHash), { complete: 25, incomplete: 25, keepers: 10 })
})

test('a lone seed is named though the handout is small', () => {
  const tracker = new Tracker({ handout: 2 })
  tracker.announce(from(0, { completed: true }), 0)
  for (let machine = 1; machine < 30; machine++) tracker.announce(from(machine), 0)
  assert.ok(tracker.announce(from(5), 1).peers.some((peer) => peer.host === from(0).host))
})

test('a machine is one entry: a restart replaces it, completing moves it, leaving removes it', () => {
  const tracker = new Tracker()
  tracker.announce(from(1), 0)
  tracker.announce(from(1, { port: 7000 }), 1)
  assert.equal(tracker.announce(from(2), 2).peers, [{ host: from(1).host, port: 7000 }])
  tracker.announce(from(1, { completed: true }), 3)
  assert.equal(tracker.counts(infoHash), { complete: 1, incomplete: 1, keepers: 1 })
  tracker.forget(infoHash, 'm1')
  assert.equal(tracker.announce(from(2), 4).peers, [])
})

test('a machine not heard for three intervals is gone', () => {
  const tracker = new Tracker({ intervalMs: 1000, random: () => 0.5 })
  tracker.announce(from(1), 0)
  assert.is(tracker.announce(from(2), 2999).peers.length, 1)
  assert.is(tracker.announce(from(2), 3000).peers.length, 0)
  tracker.expire(10_000)
  assert.equal(tracker.counts(infoHash), { complete: 0, incomplete: 0, keepers: 0 })
})

test('intervals are jittered, and a large swarm announces less often', () => {
  const tracker = new Tracker({ intervalMs: 1000, announcesPerSecond: 100 })
  const small = Array.from({ length: 50 }, (_, machine) => tracker.announce(from(machine), 0).intervalMs)
  assert.ok(small.every((ms) => ms >= 800 && ms <= 1200))
  assert.ok(new Set(small).size > 20)
  for (let machine = 0; machine < 1000; machine++) tracker.announce(from(machine), 0)
  assert.ok(tracker.announce(from(1), 0).intervalMs >= 8000)
})

test('most of a handout is of the same rack and zone, and some of it is from elsewhere', () => {
  const tracker = new Tracker({ handout: 20 })
  const place = (machine: number) => ({ zone: `z${machine % 3}`, rack: `r${machine % 30}` })
  for (let machine = 0; machine < 3000; machine++) tracker.announce(from(machine, place(machine)), 0)
  const near = { rack: 0, zone: 0, all: 0 }
  for (let machine = 0; machine < 300; machine++) {
    for (const { host } of tracker.announce(from(machine, place(machine)), 1).peers) {
      const [, , high = 0, low = 0] = host.split('.').map(Number)
      const other = high * 256 + low
      near.all++
      if (other % 3 === machine % 3) near.zone++
      if (other % 30 === machine % 30) near.rack++
    }
  }
  assert.ok(
    near.rack > 0.3 * near.all && near.zone > 0.7 * near.all && near.zone < 0.95 * near.all,
    JSON.stringify(near),
  )
})

/** How many parts the graph of who was told of whom falls into. */
function islands(machines: number, told: [number, number][]): number {
  const parent = Array.from({ length: machines }, (_, i) => i)
  const root = (i: number): number => (parent[i] === i ? i : root(parent[i] ?? i))
  for (const [a, b] of told) parent[root(a)] = root(b)
  return new Set(parent.map((_, i) => root(i))).size
}

test('a small zone among large ones, a lone machine and a restarted tracker make no islands', () => {
  const machines = 2000
  const zoneOf = (machine: number) => (machine < 5 ? 'tiny' : machine === 5 ? undefined : `z${machine % 2}`)
  const indexOf = (host: string) =>
    host
      .split('.')
      .slice(2)
      .reduce((sum, part) => sum * 256 + Number(part), 0)
  let told: [number, number][] = []
  let tracker = new Tracker()
  const announceAll = (nowMs: number, machinesNow: number) => {
    for (let machine = 0; machine < machinesNow; machine++)
      for (const { host } of tracker.announce(from(machine, { zone: zoneOf(machine) }), nowMs).peers)
        told.push([machine, indexOf(host)])
  }
  announceAll(0, machines)
  assert.is(islands(machines, told), 1)
  // also without the links of before
  tracker = new Tracker()
  told = []
  announceAll(1, machines)
  assert.is(islands(machines, told), 1)
})

test('ten keep what nobody fetches; when they go, some that rest are called', () => {
  const tracker = new Tracker({ intervalMs: 1000 })
  const seeds = (nowMs: number, resting: (machine: number) => boolean, machines = 100) =>
    Array.from({ length: machines }, (_, machine) => machine).filter(
      (machine) => tracker.announce(from(machine, { completed: true, resting: resting(machine) }), nowMs).seed,
    )
  const keepers = seeds(0, () => false)
  assert.is(keepers.length, 10)
  assert.equal(
    seeds(1, (machine) => !keepers.includes(machine)),
    keepers,
  )
  // nobody is sent to one that rests
  const { peers } = tracker.announce(from(200), 2)
  assert.is(peers.length, 10)
  assert.ok(tracker.announce(from(50, { completed: true }), 3).seed, 'while someone fetches, who is asked gives')
  tracker.forget(infoHash, 'm200')
  for (const machine of keepers.slice(0, 4)) tracker.forget(infoHash, `m${machine}`)
  const left = new Set(keepers.slice(4))
  const called = Array.from({ length: 90 }, (_, i) => 10 + i).filter(
    (machine) => tracker.announce(from(machine, { completed: true, resting: !left.has(machine) }), 4).seed,
  )
  assert.is(called.filter((machine) => !left.has(machine)).length, 4)
})

test('the tracker knows how many have each piece, and forgets with the machine', () => {
  const tracker = new Tracker()
  const bits = (...bytes: number[]) => Uint8Array.from(bytes)
  tracker.announce(from(1, { pieceCount: 3, pieces: bits(0b1100_0000) }), 0)
  tracker.announce(from(2, { pieceCount: 3, pieces: bits(0b0100_0000) }), 0)
  const counts = () => [0, 1, 2].map((index) => tracker.availabilityOf(infoHash)(index))
  assert.equal(counts(), [1, 2, 0])
  tracker.announce(from(1, { pieceCount: 3, pieces: bits(0b1010_0000) }), 1)
  assert.equal(counts(), [1, 1, 1])
  tracker.announce(from(2, { completed: true }), 2)
  assert.equal(counts(), [2, 1, 2])
  tracker.forget(infoHash, 'm1')
  assert.equal(counts(), [1, 1, 1])
})

test('a bitfield longer than there are pieces is cut, and takes no memory', () => {
  const tracker = new Tracker()
  const usedBytes = () => process.memoryUsage().arrayBuffers
  const beforeBytes = usedBytes()
  const huge = new Uint8Array(16 << 20).fill(0xff)
  for (let machine = 0; machine < 8; machine++) tracker.announce(from(machine, { pieceCount: 12, pieces: huge }), 0)
  assert.is(tracker.availabilityOf(infoHash)(11), 8)
  assert.is(tracker.availabilityOf(infoHash)(16), 0)
  assert.ok(usedBytes() - beforeBytes < 20 << 20, 'only the announced one is there')
})

test('an announce in a swarm of 20,000 costs what it costs in one of 200', () => {
  const costMs = (machines: number) => {
    const tracker = new Tracker()
    for (let machine = 0; machine < machines; machine++) tracker.announce(from(machine), 0)
    const startMs = performance.now()
    for (let i = 0; i < 5000; i++) tracker.announce(from((i * 7919) % machines), 1)
    return performance.now() - startMs
  }
  costMs(200)
  const [small, large] = [costMs(200), costMs(20_000)]
  assert.ok(large < 6 * small + 50, `${small} ms against ${large} ms`)
})

test.run()
