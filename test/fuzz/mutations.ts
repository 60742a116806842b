/** What a fuzzer does to valid input. Positions are taken modulo the length, so every mutation fits every input. */
import fc from 'fast-check'
import type { Bencoded } from '../../api/bencode.ts'

type Mutation = (bytes: Buffer) => Buffer

const at = fc.nat(1 << 20)
const length = fc.nat(300)
const absurd = fc.constantFrom(0, 1, 9, 0x7fffffff, 0x80000000, 0xfffffffe, 0xffffffff, 1 << 17, (1 << 17) + 9)
const telling = fc.constantFrom('..', '.', '', '/', '/etc', 'a/../b', 'a', 'b', 'l', 'xlp', 'p', '\0', '\ud800')
const digits = fc.constantFrom('', '-1', '-0', '00', '4294967295', '9007199254740993', '9'.repeat(30))

const flip: fc.Arbitrary<Mutation> = fc.tuple(at, fc.nat(7)).map(([where, bit]) => (bytes) => {
  const copy = Buffer.from(bytes)
  if (copy.length > 0) copy[where % copy.length] = (copy[where % copy.length] ?? 0) ^ (1 << bit)
  return copy
})
const truncate: fc.Arbitrary<Mutation> = at.map((where) => (bytes) => bytes.subarray(0, where % (bytes.length + 1)))
const remove: fc.Arbitrary<Mutation> = fc.tuple(at, length).map(([where, count]) => (bytes) => {
  const from = where % (bytes.length + 1)
  return Buffer.concat([bytes.subarray(0, from), bytes.subarray(from + count)])
})
const insert = (what: fc.Arbitrary<(bytes: Buffer) => Uint8Array>): fc.Arbitrary<Mutation> =>
  fc.tuple(at, what).map(([where, make]) => (bytes) => {
    const to = where % (bytes.length + 1)
    return Buffer.concat([bytes.subarray(0, to), make(bytes), bytes.subarray(to)])
  })
const duplicate = insert(
  fc.tuple(at, length).map(([where, count]) => (bytes) => {
    const from = where % (bytes.length + 1)
    return bytes.subarray(from, from + count)
  }),
)
const garbage = insert(fc.uint8Array({ maxLength: 64 }).map((bytes) => () => bytes))
const lie: fc.Arbitrary<Mutation> = fc.tuple(at, absurd).map(([where, number]) => (bytes) => {
  if (bytes.length < 4) return bytes
  const copy = Buffer.from(bytes)
  copy.writeUInt32BE(number, where % (copy.length - 3))
  return copy
})
/** The next number in digits becomes another one. */
const count: fc.Arbitrary<Mutation> = fc.tuple(at, digits).map(([where, number]) => (bytes) => {
  const text = bytes.toString('latin1')
  const from = text.slice(where % (text.length + 1)).search(/\d/) + (where % (text.length + 1))
  return Buffer.from(text.slice(0, from) + text.slice(from).replace(/^\d+/, number), 'latin1')
})

/** Some of them, one after the other; none at times. */
export const mutations: fc.Arbitrary<Mutation> = fc
  .array(fc.oneof(flip, truncate, remove, duplicate, garbage, lie, count), { maxLength: 4 })
  .map((all) => (bytes) => all.reduce((mutated, mutate) => mutate(mutated), bytes))

/** Any value; keys are short, so that those that mean something come up. */
export const bencoded: fc.Arbitrary<Bencoded> = fc.letrec<{ value: Bencoded }>((tie) => ({
  value: fc.oneof(
    { maxDepth: 4, depthSize: 'small' },
    fc.maxSafeInteger(),
    fc.uint8Array({ maxLength: 40 }),
    fc.array(tie('value'), { maxLength: 4 }),
    fc
      .array(fc.tuple(fc.string({ maxLength: 3 }), tie('value')), { maxLength: 4 })
      .map((entries) => new Map(entries.map(([key, value]) => [Buffer.from(key).toString('latin1'), value]))),
  ),
})).value

type Graft = (root: Bencoded) => Bencoded

/** One value of a tree, anywhere in it, becomes another, goes, or is there twice; the rest stays well-formed. */
export const grafts: fc.Arbitrary<Graft> = fc
  .array(
    fc.tuple(
      at,
      fc.oneof(
        bencoded.map((value): Bencoded[] => [value]),
        absurd.map((value): Bencoded[] => [value]),
        telling.map((value): Bencoded[] => [Buffer.from(value)]),
        fc.constant<Bencoded[]>([]),
        fc.constant(undefined),
      ),
    ),
    { maxLength: 3 },
  )
  .map(
    (all) => (root) =>
      all.reduce<Bencoded>((tree, [where, value]) => graft(tree, { left: where % size(tree), value }), root),
  )

function size(value: Bencoded): number {
  if (Array.isArray(value)) return value.reduce<number>((sum, each) => sum + size(each), 1)
  if (value instanceof Map) return [...value.values()].reduce<number>((sum, each) => sum + size(each), 1)
  return 1
}

/** `value`: what the chosen one is replaced by, none or one; undefined: it is there twice, in a list. */
function graft(tree: Bencoded, o: { left: number; value: Bencoded[] | undefined }): Bencoded {
  if (o.left-- === 0) return o.value?.[0] ?? tree
  const step = (child: Bencoded): Bencoded[] => {
    const chosen = o.left === 0
    const grafted = graft(child, o)
    if (!chosen) return [grafted]
    return o.value ?? [child, child]
  }
  if (Array.isArray(tree)) return tree.flatMap(step)
  if (!(tree instanceof Map)) return tree
  const entries = [...tree].flatMap(([key, child]) => step(child).map((each) => [key, each] as const))
  return new Map(entries)
}
