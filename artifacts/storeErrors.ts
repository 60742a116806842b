import { ShoalError, Transient } from '../api/errors.ts'

interface S3Failure {
  name: string
  $metadata?: { httpStatusCode?: number }
}

/** The S3 error code of what the SDK threw, as `NoSuchKey`; undefined for anything else, as a refused connection. */
export function s3Code(error: unknown): string | undefined {
  const failure = error as Partial<S3Failure> | null
  return failure?.$metadata?.httpStatusCode === undefined ? undefined : failure.name
}

/**
 * What the SDK threw, as one of ours. Only a plain "no such key" says that the object is missing; a refused
 * credential, a missing bucket or a proxy's page say nothing about it and are StoreUnreachable.
 */
export function storeError(error: unknown, doing: string): ShoalError {
  if (error instanceof ShoalError) return error
  const code = s3Code(error)
  switch (code) {
    case 'NoSuchKey':
      return new Transient('ReplicaMissing', `${doing}: the object is not there.`, { cause: error })
    case 'BadDigest':
    case 'InvalidDigest':
    case 'XAmzContentChecksumMismatch':
    case 'XAmzContentSHA256Mismatch':
      return new Transient('ChecksumMismatch', `${doing}: the store refused the checksum.`, { cause: error })
    default: {
      const detail = code ?? (error as { code?: string }).code ?? (error as Error).message
      return new Transient('StoreUnreachable', `${doing}: the store does not answer as it should (${detail}).`, {
        cause: error,
      })
    }
  }
}

/** Runs calls to a store; what they throw is given as one of our errors. */
export async function storeCall<T>(doing: string, call: () => Promise<T>): Promise<T> {
  try {
    return await call()
  } catch (error) {
    throw storeError(error, doing)
  }
}
