/** For the tests of this folder: a parser of bytes that someone may have changed. */
import fc from 'fast-check'
import * as assert from 'uvu/assert'

/** Any byte changed, from `first` on, is refused as `DescriptorInvalid` or changes the identity that is parsed. */
export function assertDamageShows(bytes: Uint8Array, identityOf: (bytes: Uint8Array) => string, first = 0): void {
  const identity = identityOf(bytes)
  fc.assert(
    fc.property(fc.integer({ min: first, max: bytes.length - 1 }), fc.nat(255), (at, value) => {
      fc.pre(bytes[at] !== value)
      const damaged = Buffer.from(bytes)
      damaged[at] = value
      try {
        assert.is.not(identityOf(damaged), identity)
      } catch (error) {
        assert.is((error as { code?: string }).code, 'DescriptorInvalid', String(error))
      }
    }),
    { numRuns: 500 },
  )
}
