import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { stale } from './generate.ts'

const test = suite('generated files')

test('what is generated from the code is up to date (else run ./hack/generate)', () => {
  assert.equal(stale(), [])
})

test.run()
