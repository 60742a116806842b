import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { hashTemplate, nextSequence, type Template, template } from './envelope.ts'

const test = suite('envelopes')

const web = template.parse({
  artifact: {
    name: 'web-1a2b3c4d5e6f',
    digest: `sha256:${'a'.repeat(64)}`,
    sizeBytes: 1,
    key: 'k',
    infoHash: 'b'.repeat(40),
    descriptorDigest: `sha256:${'c'.repeat(64)}`,
  },
  activation: { command: ['./server'], env: [{ name: 'A', value: '1' }] },
})

test('equal templates have equal hashes, whatever the order of their keys', () => {
  const reordered = Object.fromEntries(Object.entries(web).reverse()) as Template
  assert.is(hashTemplate(web), hashTemplate(reordered))
})

test('another command is another template', () => {
  const changed = { ...web, activation: { ...web.activation, command: ['./server', '--verbose'] } }
  assert.is.not(hashTemplate(web), hashTemplate(changed))
})

test('a sequence is the time, or above all that are known; far behind nobody can tell it', () => {
  const high = () => 0.999
  assert.is(nextSequence([0, 999], 1000, high), 1000)
  assert.is(nextSequence([1000], 1000, high), 1001, 'told twice in a moment, it does not run ahead of the clock')
  assert.is(nextSequence([1000, 90_000], 2000, high), 91_000)
  assert.is(
    nextSequence([1000, 90_000], 2000, () => 0),
    90_001,
  )
})

test.run()
