import { parseDescriptor } from '../api/descriptor.ts'
import { ShoalError } from '../api/errors.ts'
import type { ReplicaWork } from '../api/regionApi.ts'
import type { Store } from './store.ts'

/** What a copy is compared with. */
export type ExpectedBlob = Pick<
  ReplicaWork,
  'key' | 'sizeBytes' | 'partSizeBytes' | 'checksum' | 'digest' | 'descriptorKey' | 'descriptorDigest'
>

export interface CheckOutcome {
  /** Unknown: the store didn't answer, which says nothing about the copy. */
  state: 'Replicated' | 'Missing' | 'Corrupt' | 'Unknown'
  allBytesRead: boolean
  message?: string
}

export interface CheckOptions {
  allBytes: boolean
  signal?: AbortSignal
  onBytes?: (bytes: number) => void
}

/** The largest descriptor that `parseDescriptor` takes. */
export const MAX_DESCRIPTOR_BYTES = 64 << 20

/**
 * Looks at a copy in its bucket: size and checksum as the store remembers them, or with `allBytes` every byte. Stores
 * keep checksums beside the bytes and don't look again, so only the second finds a flipped bit.
 */
export async function checkReplica(store: Store, blob: ExpectedBlob, options: CheckOptions): Promise<CheckOutcome> {
  const corrupt = (message: string): CheckOutcome => ({ state: 'Corrupt', allBytesRead: options.allBytes, message })
  try {
    const head = await store.head(blob.key)
    if (head.sizeBytes !== blob.sizeBytes)
      return corrupt(`The copy has ${head.sizeBytes} bytes, not ${blob.sizeBytes}.`)
    if (head.checksum !== undefined && head.checksum !== blob.checksum && head.checksum.endsWith(`-${partCount(blob)}`))
      return corrupt('The store’s checksum of the copy differs.')
    if (!options.allBytes) {
      await store.head(blob.descriptorKey)
      return { state: 'Replicated', allBytesRead: false }
    }
    const found = await store.readBack(blob.key, { signal: options.signal, onBytes: options.onBytes })
    if (found.digest !== blob.digest) return corrupt(`The copy’s bytes are ${found.digest}, not ${blob.digest}.`)
    const descriptor = parseDescriptor(await store.readAll(blob.descriptorKey, MAX_DESCRIPTOR_BYTES, options.signal))
    if (descriptor.digest !== blob.descriptorDigest) return corrupt('The descriptor beside the copy is another one.')
    return { state: 'Replicated', allBytesRead: true }
  } catch (error) {
    options.signal?.throwIfAborted()
    if (!(error instanceof ShoalError)) throw error
    if (error.code === 'ReplicaMissing') return { state: 'Missing', allBytesRead: false, message: error.message }
    if (error.code === 'DescriptorInvalid') return corrupt(error.message)
    return { state: 'Unknown', allBytesRead: false, message: error.message }
  }
}

const partCount = (blob: ExpectedBlob) => Math.ceil(blob.sizeBytes / blob.partSizeBytes)
