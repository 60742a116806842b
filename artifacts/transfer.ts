import { request } from 'undici'
import { Transient } from '../api/errors.ts'
import { getInto } from '../runtime/getInto.ts'
import type { PresignedPart } from './uploads.ts'

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
    const { statusCode, headers, body } = await request(part.url, {
      method: 'PUT',
      headers: part.headers,
      body: bytes,
      signal: bounded(signal),
    })
    const text = await body.text()
    const { etag } = headers
    if (statusCode === 200 && typeof etag === 'string') return etag
    refusal = `${statusCode} ${/<Code>(\w+)<\/Code>/.exec(text)?.[1] ?? ''}`.trim()
  } catch (error) {
    signal.throwIfAborted()
    throw new Transient('StoreUnreachable', 'Uploading a part: the store does not answer.', { cause: error })
  }
  const code = /Digest|Checksum|ContentSHA256/.test(refusal) ? 'ChecksumMismatch' : 'StoreUnreachable'
  throw new Transient(code, `Uploading a part: the store answered ${refusal}.`)
}

/**
 * Fills `into` with the bytes from `first` on of what a presigned URL gives. The URL is another region's, so a failure
 * says nothing about our own store.
 *
 * @throws Transient `Unavailable`
 */
export async function getRange(url: string, first: number, into: Uint8Array, signal: AbortSignal): Promise<void> {
  const range = `bytes=${first}-${first + into.length - 1}`
  await get(url, { range }, signal, (status, lengthBytes) =>
    status === 206 && lengthBytes === into.length ? into : undefined,
  )
}

/** A small object by its presigned URL. @throws Transient `Unavailable` */
export async function getSmall(url: string, maxBytes: number, signal: AbortSignal): Promise<Uint8Array> {
  return get(url, {}, signal, (status, lengthBytes) =>
    status === 200 && lengthBytes <= maxBytes ? new Uint8Array(lengthBytes) : undefined,
  )
}

async function get(
  url: string,
  headers: Record<string, string>,
  signal: AbortSignal,
  target: (status: number, lengthBytes: number) => Uint8Array | undefined,
): Promise<Uint8Array> {
  try {
    return await getInto(url, {
      headers,
      signal: bounded(signal),
      target(status, lengthBytes) {
        const into = target(status, lengthBytes)
        if (into) return into
        throw new Transient(
          'Unavailable',
          `The source store answered otherwise than asked (${status}, ${lengthBytes} bytes).`,
        )
      },
    })
  } catch (error) {
    signal.throwIfAborted()
    if (error instanceof Transient) throw error
    throw new Transient('Unavailable', 'The source store does not answer.', { cause: error })
  }
}
