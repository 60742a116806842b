import fc from 'fast-check'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { readLines } from './lines.ts'

const test = suite('lines')

async function read(chunks: Uint8Array[]): Promise<string[]> {
  const lines: string[] = []
  const stream = (async function* () {
    yield* chunks
  })()
  for await (const line of readLines(stream)) lines.push(line)
  return lines
}

test('lines are the same wherever the stream is cut, also inside a character', async () => {
  const line = fc
    .string({ unit: 'binary', minLength: 1 })
    .filter((text) => !/[\n\ufeff]/.test(text) && text.isWellFormed())
  await fc.assert(
    fc.asyncProperty(fc.array(line), fc.integer({ min: 1, max: 9 }), async (lines, size) => {
      const bytes = Buffer.from(lines.map((text) => `${text}\n`).join(''))
      const chunks = Array.from({ length: Math.ceil(bytes.length / size) }, (_, i) =>
        bytes.subarray(i * size, (i + 1) * size),
      )
      assert.equal(await read(chunks), lines)
    }),
  )
})

test('a line that was cut off by the end of the stream is not taken for a whole one', async () => {
  assert.equal(await read([Buffer.from('{"a":1}\n\n{"b"')]), ['{"a":1}'])
})

test('a line without end is refused before it fills the memory', async () => {
  const chunk = Buffer.alloc(1 << 20, 'x')
  const error = await read(Array.from({ length: 40 }, () => chunk)).catch((thrown: unknown) => thrown)
  assert.instance(error, Error)
})

test.run()
