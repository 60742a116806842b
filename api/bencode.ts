/**
 * Bencoding (BEP 3), for descriptors and for what strangers send in handshakes. The npm package is not used on
 * purpose: its decoder loops for ever on a negative length (`l-3:`), and a peer chooses these bytes.
 */

/** Keys of a dictionary are its bytes read as latin1, so that any key survives. Text values are UTF-8 bytes. */
export type Bencoded = number | Uint8Array | Bencoded[] | Map<string, Bencoded>

const MAX_DEPTH = 16
/** A value costs 100 bytes of memory, and two of input. A torrent of 500,000 files has 4 million of them. */
const MAX_VALUES = 2 ** 22
const [I, L, D, E, COLON, MINUS, ZERO] = [0x69, 0x6c, 0x64, 0x65, 0x3a, 0x2d, 0x30]

/** Decodes exactly one value; throws `SyntaxError` on anything else. Byte strings are views of `data`. */
export function decodeBencode(data: Uint8Array): Bencoded {
  let at = 0
  let values = 0

  function number(end: number): number {
    const negative = data[at] === MINUS
    let sum = 0
    const first = negative ? at + 1 : at
    for (at = first; data[at] !== end; at++) {
      const digit = (data[at] ?? 0) - ZERO
      if (digit < 0 || digit > 9 || at - first > 15) throw new SyntaxError(`not a number at byte ${at}`)
      sum = sum * 10 + digit
    }
    if (at === first || sum > Number.MAX_SAFE_INTEGER) throw new SyntaxError(`not a number at byte ${at}`)
    at++
    return negative ? -sum : sum
  }

  function bytes(): Uint8Array {
    const length = number(COLON)
    if (length < 0 || Object.is(length, -0) || at + length > data.length) throw new SyntaxError('a string is too long')
    at += length
    return data.subarray(at - length, at)
  }

  function value(depth: number): Bencoded {
    if (depth > MAX_DEPTH) throw new SyntaxError('nested too deeply')
    if (++values > MAX_VALUES) throw new SyntaxError('too many values')
    switch (data[at]) {
      case I:
        at++
        return number(E)
      case L: {
        const list: Bencoded[] = []
        for (at++; data[at] !== E; ) list.push(value(depth + 1))
        at++
        return list
      }
      case D: {
        const dictionary = new Map<string, Bencoded>()
        for (at++; data[at] !== E; ) {
          const key = Buffer.from(bytes()).toString('latin1')
          dictionary.set(key, value(depth + 1))
        }
        at++
        return dictionary
      }
      default:
        return bytes()
    }
  }

  const decoded = value(0)
  if (at !== data.length) throw new SyntaxError('more bytes after the value')
  return decoded
}

/** Canonical form: keys in byte order. */
export function encodeBencode(value: Bencoded): Uint8Array {
  const parts: Uint8Array[] = []
  append(parts, value)
  return Buffer.concat(parts)
}

function append(parts: Uint8Array[], value: Bencoded): void {
  if (typeof value === 'number') parts.push(Buffer.from(`i${value}e`))
  else if (value instanceof Uint8Array) parts.push(Buffer.from(`${value.length}:`), value)
  else if (Array.isArray(value)) {
    parts.push(Buffer.from('l'))
    for (const entry of value) append(parts, entry)
    parts.push(Buffer.from('e'))
  } else {
    parts.push(Buffer.from('d'))
    // latin1 keeps byte order: one UTF-16 unit per byte
    for (const key of [...value.keys()].sort(compareUnits)) {
      append(parts, Buffer.from(key, 'latin1'))
      append(parts, value.get(key) as Bencoded)
    }
    parts.push(Buffer.from('e'))
  }
}

function compareUnits(a: string, b: string): number {
  return a < b ? -1 : a > b ? 1 : 0
}
