import { setFlagsFromString } from 'node:v8'

/**
 * What a machine that is held costs, beside the allocator's settings in manifests/region and bin/shoal: of 75 KB, OpenSSL's
 * structures and Node's parser are 31. The post-quantum key exchange leaves 8 KB behind, and what is said here is signed,
 * and soon public to every machine of the region.
 */
export const fleetGroups = 'X25519:P-256:P-384'

/** A heap of 20,000 machines that may double before it is looked through is half garbage: 130 MB. */
export const growSlowly = (): void => setFlagsFromString('--heap-growing-percent=10')
