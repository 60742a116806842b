import { Transient } from '../api/errors.ts'
import type { PresignedPart } from './store.ts'

/** How long one part may take: 16 MiB at 140 KB/s. */
const PART_TIMEOUT_MS = 120_000

const bounded = (signal: AbortSignal) => AbortSignal.any([signal, AbortSignal.timeout(PART_TIMEOUT_MS)])

/**
 * Uploads a part by its presigned URL and gives its ETag.
 *
 * @throws Transient `ChecksumMismatch` when the store refuses the bytes, else `StoreUnreachable`
 */
export async function putPart(part: PresignedPart, bytes: Uint8Array, signal: AbortSignal): Promise<string> {
  let refusal: string
  try {
    const response = await fetch(part.url, {
      method: 'PUT',
      headers: part.headers,
      body: bytes as Uint8Array<ArrayBuffer>,
      signal: bounded(signal),
    })
    const body = await response.text()
    const etag = response.headers.get('etag')
    if (response.ok && etag) return etag
    refusal = `${response.status} ${/<Code>(\w+)<\/Code>/.exec(body)?.[1] ?? ''}`.trim()
  } catch (error) {
    signal.throwIfAborted()
    throw new Transient('StoreUnreachable', 'Uploading a part: the store does not answer.', { cause: error })
  }
  const code = /Digest|Checksum|ContentSHA256/.test(refusal) ? 'ChecksumMismatch' : 'StoreUnreachable'
  throw new Transient(code, `Uploading a part: the store answered ${refusal}.`)
}

/**
 * Reads `sizeBytes` bytes from `first` on, of what a presigned URL gives. The URL is another region's, so a failure
 * says nothing about our own store.
 *
 * @throws Transient `Unavailable`
 */
export async function getRange(
  url: string,
  first: number,
  sizeBytes: number,
  signal: AbortSignal,
): Promise<Uint8Array> {
  const range = `bytes=${first}-${first + sizeBytes - 1}`
  return get(url, { headers: { range }, status: 206, signal, fits: (size) => size === sizeBytes })
}

/** A small object by its presigned URL. @throws Transient `Unavailable` */
export async function getSmall(url: string, maxBytes: number, signal: AbortSignal): Promise<Uint8Array> {
  return get(url, { headers: {}, status: 200, signal, fits: (size) => size <= maxBytes })
}

interface GetOptions {
  headers: Record<string, string>
  status: number
  signal: AbortSignal
  fits: (sizeBytes: number) => boolean
}

async function get(url: string, { headers, status, signal, fits }: GetOptions): Promise<Uint8Array> {
  let refusal: string
  try {
    const response = await fetch(url, { headers, signal: bounded(signal) })
    const length = Number(response.headers.get('content-length') ?? Number.NaN)
    if (response.status === status && fits(length)) {
      const bytes = await response.bytes()
      if (fits(bytes.length)) return bytes
    }
    await response.body?.cancel().catch(() => {})
    refusal = `${response.status}, ${length} bytes`
  } catch (error) {
    signal.throwIfAborted()
    throw new Transient('Unavailable', 'The source store does not answer.', { cause: error })
  }
  throw new Transient('Unavailable', `The source store answered otherwise than asked (${refusal}).`)
}
