/** The parts without sockets: picking, choking, blame, bans, addresses, framing. */
import fc from 'fast-check'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { ActivePiece } from './activePiece.ts'
import { AddressBook } from './addresses.ts'
import { Bans } from './bans.ts'
import { Bitfield } from './bitfield.ts'
import { Blame } from './blame.ts'
import { chooseUnchoked } from './choker.ts'
import { PiecePicker } from './picker.ts'
import { blockBytesOf } from './pipeline.ts'
import { Speed } from './rate.ts'
import { parseRateSchedule } from './rateSchedule.ts'
import { encodeBlockHeader, encodeHandshake, encodeMessage, encodeNumbers, messageId, WireDecoder } from './wire.ts'

const test = suite('cores')

function come(picker: PiecePicker, pieces: Bitfield): void {
  for (let i = 0; i < pieces.size; i++) if (pieces.has(i)) picker.peerHas(i)
}

test('a bitfield survives the wire, and a wrong length or a spare bit is refused', () => {
  fc.assert(
    fc.property(fc.integer({ min: 1, max: 200 }), fc.array(fc.nat(199)), (size, indexes) => {
      const field = new Bitfield(size)
      for (const index of indexes) field.add(index)
      const parsed = Bitfield.parse(size, field.bytes)
      assert.is(parsed?.count, new Set(indexes.filter((index) => index < size)).size)
    }),
  )
  assert.is(Bitfield.parse(9, new Uint8Array(1)), undefined)
  assert.is(Bitfield.parse(9, new Uint8Array([0, 0x40])), undefined)
})

test('the rarest missing piece that is offered is taken, and none twice', () => {
  const picker = new PiecePicker(10, () => 0.3)
  const all = new Bitfield(10)
  all.addAll()
  const some = new Bitfield(10)
  for (const index of [0, 1, 2, 3, 4, 5, 6, 8, 9]) some.add(index)
  come(picker, all)
  come(picker, some)
  assert.is(
    picker.take(() => true, { randomFirst: 0 }),
    7,
  )
  const taken = new Set<number | undefined>([7])
  for (let i = 0; i < 9; i++) taken.add(picker.take(() => true))
  assert.is(taken.size, 10)
  assert.ok(picker.exhausted)
  assert.is(
    picker.take(() => true),
    undefined,
  )
  picker.putBack(4)
  assert.is(
    picker.take((index) => index !== 4),
    undefined,
  )
  assert.is(
    picker.take(() => true),
    4,
  )
})

test('what is taken is offered, and no piece that is offered and missing is rarer, whatever happened before', () => {
  const size = 12
  const piece = fc.nat(size - 1)
  const act = fc.oneof(
    ...(['peerHas', 'peerLacks', 'putBack', 'gained', 'lost'] as const).map((name) =>
      fc.tuple(fc.constant(name), piece),
    ),
    fc.tuple(fc.constant('take' as const), fc.uniqueArray(piece)),
  )
  fc.assert(
    fc.property(fc.array(act, { maxLength: 60 }), fc.double({ min: 0, max: 0.999, noNaN: true }), (acts, chance) => {
      const picker = new PiecePicker(size, () => chance)
      const availability = new Array<number>(size).fill(0)
      const taken = new Set<number>()
      for (const [name, argument] of acts) {
        if (name === 'take') {
          const open = argument.filter((index) => !taken.has(index) && !picker.had.has(index))
          const index = picker.take((each) => argument.includes(each), { randomFirst: 0 })
          const rarest = Math.min(...open.map((each) => availability[each] ?? 0))
          assert.is(index === undefined ? Number.POSITIVE_INFINITY : availability[index], rarest)
          if (index !== undefined) taken.add(index)
          continue
        }
        picker[name](argument)
        const count = availability[argument] ?? 0
        if (name === 'peerHas') availability[argument] = count + 1
        if (name === 'peerLacks') availability[argument] = Math.max(0, count - 1)
        if (name === 'putBack' || name === 'gained') taken.delete(argument)
        assert.is(picker.availability(argument), availability[argument])
      }
      assert.is(
        picker.exhausted,
        picker.missing().every((index) => taken.has(index)),
      )
    }),
  )
})

test('a limit may differ by hours, which may pass midnight; nonsense is refused', () => {
  assert.is(parseRateSchedule('1000')(5), 1000)
  const byHours = parseRateSchedule('8-20:100, 22-6:200,300')
  assert.equal([7, 8, 19, 20, 21, 22, 0, 5, 6].map(byHours), [300, 100, 100, 300, 300, 200, 200, 200, 300])
  assert.is(parseRateSchedule('8-20:100')(21), Number.POSITIVE_INFINITY)
  for (const text of ['', '0', '-5', '8-20', '8-8:5', '24-3:5', '8-25:5', '5,', '1.5', '5M'])
    assert.throws(() => parseRateSchedule(text), /is not a limit/, text)
})

test('machines that start together begin with different pieces', () => {
  const first = Array.from({ length: 50 }, () => {
    const picker = new PiecePicker(1000, Math.random)
    const all = new Bitfield(1000)
    all.addAll()
    come(picker, all)
    return picker.take(() => true)
  })
  assert.ok(new Set(first).size > 40)
})

test('slots go round: who waited longest gets the slot of who had it longest, after its turn', () => {
  const peer = (waitingSinceMs: number, unchokedSinceMs?: number) => ({
    interested: true,
    waitingSinceMs,
    unchokedSinceMs,
  })
  const [old, recent, first, second] = [peer(0, 0), peer(0, 9000), peer(100), peer(200)]
  const o = { slots: 2, turnMs: 10_000 }
  assert.equal(chooseUnchoked([old, recent, first, second], { ...o, nowMs: 9500 }), new Set([old, recent]))
  assert.equal(chooseUnchoked([old, recent, second, first], { ...o, nowMs: 10_000 }), new Set([recent, first]))
  assert.equal(chooseUnchoked([old, { ...first, interested: false }], { ...o, nowMs: 99_999 }), new Set([old]))
  const idle = { ...recent, interested: false }
  assert.equal(chooseUnchoked([old, idle], { ...o, nowMs: 99_999 }), new Set([old, idle]))
  assert.equal(chooseUnchoked([old, idle, first], { ...o, nowMs: 99_999 }), new Set([old, first]))
  assert.equal(chooseUnchoked([old, recent], { ...o, nowMs: 99_999 }), new Set([old, recent]))
})

test('any number of applicants leaves no slot empty and none too many', () => {
  const applicant = fc.record({
    interested: fc.boolean(),
    waitingSinceMs: fc.nat(1000),
    unchokedSinceMs: fc.option(fc.nat(1000), { nil: undefined }),
  })
  fc.assert(
    fc.property(fc.array(applicant), fc.nat(10), fc.nat(2000), (applicants, slots, nowMs) => {
      const chosen = chooseUnchoked(applicants, { slots, turnMs: 500, nowMs })
      assert.ok(chosen.size <= slots)
      const interested = applicants.filter((a) => a.interested)
      assert.is(interested.filter((a) => chosen.has(a)).length, Math.min(slots, interested.length))
    }),
  )
})

test('blame: one sender is guilty; of several, whoever sent what differs from the truth', () => {
  const blame = new Blame<string>(4)
  const truth = Buffer.from('aaaabbbbcccc')
  assert.is(blame.failed(0, Buffer.from('xxxxbbbbcccc'), ['m', 'm', 'm']), 'm')
  assert.is(blame.failed(1, Buffer.from('aaaaxxxxcccc'), ['honest', 'liar', 'honest']), undefined)
  assert.ok(blame.wantsOneSender(1))
  assert.equal(blame.succeeded(1, truth), new Set(['liar']))
  assert.not.ok(blame.wantsOneSender(1))
})

test('three peers of one host that lie cost the host, unless it is this machine', () => {
  const bans = new Bans()
  for (let i = 0; i < 3; i++) {
    bans.ban({ id: `r${i}`, address: { host: '10.0.0.1', port: i } })
    bans.ban({ id: `l${i}`, address: { host: '127.0.0.1', port: i } })
  }
  assert.ok(bans.bansAddress({ host: '10.0.0.1', port: 99 }))
  assert.not.ok(bans.bansAddress({ host: '127.0.0.1', port: 99 }))
  assert.ok(bans.bansAddress({ host: '127.0.0.1', port: 1 }))
})

test('an address that fails is tried ever less often, and never twice at once', () => {
  const book = new AddressBook(() => 0.5)
  const address = { host: 'a', port: 1 }
  book.add(address, 0)
  let nowMs = 0
  const waitsMs: number[] = []
  for (let i = 0; i < 8; i++) {
    assert.ok(book.take(nowMs))
    assert.is(book.take(nowMs), undefined)
    book.freed(address, false, nowMs)
    const fromMs = nowMs
    while (!book.take(nowMs)) nowMs += 100
    waitsMs.push(nowMs - fromMs)
    book.freed(address, true, nowMs)
    for (let failure = 0; failure <= i; failure++) book.freed(address, false, nowMs)
    nowMs += 40_000
  }
  assert.ok(waitsMs.every((ms, i) => i === 0 || ms >= (waitsMs[i - 1] ?? 0)))
  assert.is(waitsMs.at(-1), 30_000)
})

test('messages come out the same however the bytes are cut', () => {
  const stream = Buffer.concat([
    encodeHandshake('ab'.repeat(20), Buffer.alloc(20, 1)),
    encodeMessage(messageId.unchoke),
    Buffer.alloc(4),
    encodeNumbers(messageId.have, 7),
    encodeBlockHeader(3, 16384, 50),
    Buffer.alloc(50, 9),
    encodeMessage(messageId.bitfield, Buffer.alloc(30, 5)),
  ])
  const decode = (cuts: number[]) => {
    const seen: unknown[] = []
    const block = Buffer.alloc(50)
    const decoder = new WireDecoder({
      handshake: (handshake) => seen.push(handshake.infoHash),
      message: (id, payload) => seen.push([id, payload.toString('hex')]),
      blockTarget: (...numbers) => {
        seen.push(numbers)
        return block
      },
      blockEnd: (...numbers) => seen.push([...numbers, block.toString('hex')]),
    })
    decoder.maxBlockBytes = 100
    let at = 0
    for (const cut of [...cuts.map((c) => c % stream.length).sort((a, b) => a - b), stream.length]) {
      decoder.push(stream.subarray(at, cut))
      at = cut
    }
    return seen
  }
  const whole = decode([])
  assert.is(whole.length, 6)
  fc.assert(fc.property(fc.array(fc.nat(1000)), (cuts) => assert.equal(decode(cuts), whole)))
})

test('blocks are powers of two, no larger than understood, and large only where answers come at once', () => {
  const peer = (blockBytes: number, bytesPerSecond: number, windowBytes: number) => {
    const received = new Speed(0)
    received.bytesPerSecond = bytesPerSecond
    return { blockBytes, windowBytes, received }
  }
  assert.is(blockBytesOf(peer(16 << 10, 1e9, 8 << 20)), 16 << 10)
  assert.is(blockBytesOf(peer(512 << 10, 0, 0)), 32 << 10)
  assert.is(blockBytesOf(peer(512 << 10, 1.5e6, 0)), 64 << 10)
  assert.is(blockBytesOf(peer(512 << 10, 1e9, 0)), 128 << 10)
  assert.is(blockBytesOf(peer(512 << 10, 1e9, 8 << 20)), 512 << 10)
  assert.is(blockBytesOf(peer(300_000, 1e9, 8 << 20)), 256 << 10)
})

test('a block never reaches over a multiple of its size', () => {
  const buffer = { bytes: new Uint8Array(0), uses: 1 }
  const piece = new ActivePiece({ index: 0, sizeBytes: 640 << 10, buffer, oneSender: false, units: 40 })
  const runs: [unit: number, units: number][] = []
  for (const max of [2, 4, 16, 16, 16, 16]) {
    const run = piece.freeRun(max)
    if (!run) break
    for (let unit = run.unit; unit < run.unit + run.units; unit++) piece.ask(unit)
    runs.push([run.unit, run.units])
  }
  assert.equal(runs, [
    [0, 2],
    [2, 2],
    [4, 12],
    [16, 16],
    [32, 8],
  ])
})

test.run()
