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
