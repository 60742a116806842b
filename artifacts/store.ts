import { createHash } from 'node:crypto'
import type { Readable } from 'node:stream'
import {
  CreateBucketCommand,
  DeleteObjectCommand,
  GetObjectCommand,
  HeadBucketCommand,
  HeadObjectCommand,
  PutObjectCommand,
  S3Client,
} from '@aws-sdk/client-s3'
import { getSignedUrl } from '@aws-sdk/s3-request-presigner'
import { Transient } from '../api/errors.ts'
import { s3Code, storeCall, storeError } from './storeErrors.ts'
import { type ObjectHead, Uploads } from './uploads.ts'

export interface StoreOptions {
  endpoint: string
  bucket: string
  accessKeyId: string
  secretAccessKey: string
  /** How long the store may be silent in any call. Default 10 s. */
  timeoutMs?: number
}

interface ReadOptions {
  /** First and last byte, both included. */
  first?: number
  last?: number
  signal?: AbortSignal | undefined
}

interface ReadBackOptions {
  signal?: AbortSignal | undefined
  onBytes?: ((bytes: number) => void) | undefined
  /** Gets every chunk, in order. */
  onChunk?: (chunk: Uint8Array) => void
}

/**
 * One bucket of any S3 server, path style. Every call throws Transient `StoreUnreachable` when the store can't answer,
 * `ReplicaMissing` when the bucket answers and the key isn't there, and `ChecksumMismatch` when it refuses bytes.
 */
export class Store implements Disposable {
  readonly endpoint: string
  readonly bucket: string
  /** Objects that come in parts. */
  readonly uploads: Uploads
  readonly #client: S3Client
  readonly #timeoutMs: number

  constructor(options: StoreOptions) {
    this.endpoint = options.endpoint
    this.bucket = options.bucket
    this.#timeoutMs = options.timeoutMs ?? 10_000
    this.#client = new S3Client({
      endpoint: options.endpoint,
      region: 'us-east-1',
      forcePathStyle: true,
      credentials: { accessKeyId: options.accessKeyId, secretAccessKey: options.secretAccessKey },
      // we give and compare the checksums ourselves
      requestChecksumCalculation: 'WHEN_REQUIRED',
      responseChecksumValidation: 'WHEN_REQUIRED',
      maxAttempts: 2,
      requestHandler: { connectionTimeout: 5_000, requestTimeout: this.#timeoutMs, throwOnRequestTimeout: true },
    })
    this.uploads = new Uploads(this.#client, this.bucket, (key) => this.head(key))
  }

  /** Does nothing when the bucket is there. */
  async createBucket(): Promise<void> {
    await storeCall(`creating bucket ${this.bucket}`, async () => {
      try {
        await this.#client.send(new CreateBucketCommand({ Bucket: this.bucket }))
      } catch (error) {
        if (s3Code(error) !== 'BucketAlreadyOwnedByYou') throw error
      }
    })
  }

  /** Writes a small object, over what is there. */
  async put(key: string, bytes: Uint8Array): Promise<void> {
    await storeCall(`writing ${key}`, () =>
      this.#client.send(
        new PutObjectCommand({
          Bucket: this.bucket,
          Key: key,
          Body: bytes,
          ChecksumSHA256: createHash('sha256').update(bytes).digest('base64'),
        }),
      ),
    )
  }

  /** What the store remembers of an object; it doesn't read the bytes. */
  async head(key: string): Promise<ObjectHead> {
    return storeCall(`looking at ${key}`, async () => {
      try {
        const head = await this.#client.send(
          new HeadObjectCommand({ Bucket: this.bucket, Key: key, ChecksumMode: 'ENABLED' }),
        )
        return { sizeBytes: head.ContentLength ?? 0, checksum: head.ChecksumSHA256 }
      } catch (error) {
        if (s3Code(error) !== 'NotFound') throw error
        // a HEAD's 404 has no body: it may be the bucket that is gone
        await this.#client.send(new HeadBucketCommand({ Bucket: this.bucket }))
        throw new Transient('ReplicaMissing', `${key} is not in the bucket.`, { cause: error })
      }
    })
  }

  /** A URL that whoever has it may read by, with any Range. */
  async presignGet(key: string, expiresSeconds: number): Promise<{ url: string; expiresAtMs: number }> {
    const expiresAtMs = Date.now() + expiresSeconds * 1000
    const url = await getSignedUrl(this.#client, new GetObjectCommand({ Bucket: this.bucket, Key: key }), {
      expiresIn: expiresSeconds,
    })
    return { url, expiresAtMs }
  }

  /** The object's bytes, or a range of them. Leaving the loop early closes the connection. */
  async *read(key: string, options: ReadOptions = {}): AsyncGenerator<Uint8Array> {
    const { first, last } = options
    const silence = new AbortController()
    const timer = setTimeout(() => silence.abort(new Error('silent for too long')), this.#timeoutMs)
    const signal = options.signal ? AbortSignal.any([options.signal, silence.signal]) : silence.signal
    try {
      const { Body } = await this.#client.send(
        new GetObjectCommand({
          Bucket: this.bucket,
          Key: key,
          ...(first !== undefined && { Range: `bytes=${first}-${last ?? ''}` }),
        }),
        { abortSignal: signal },
      )
      const body = Body as Readable
      const stop = () => body.destroy(signal.reason)
      signal.addEventListener('abort', stop)
      try {
        for await (const chunk of body) {
          timer.refresh()
          yield chunk
        }
      } finally {
        signal.removeEventListener('abort', stop)
        body.destroy()
      }
    } catch (error) {
      options.signal?.throwIfAborted()
      throw storeError(error, `reading ${key}`)
    } finally {
      clearTimeout(timer)
    }
  }

  /** A small object. @throws Transient `ChecksumMismatch` when it is larger than `maxBytes` */
  async readAll(key: string, maxBytes: number, signal?: AbortSignal): Promise<Uint8Array> {
    const chunks: Uint8Array[] = []
    let total = 0
    for await (const chunk of this.read(key, { signal })) {
      chunks.push(chunk)
      total += chunk.length
      if (total > maxBytes) throw new Transient('ChecksumMismatch', `${key} is larger than ${maxBytes} bytes.`)
    }
    return Buffer.concat(chunks)
  }

  /** Reads every byte from the bucket: `digest` is `sha256:<hex>`. */
  async readBack(key: string, options: ReadBackOptions = {}): Promise<{ digest: string; sizeBytes: number }> {
    const hash = createHash('sha256')
    let sizeBytes = 0
    for await (const chunk of this.read(key, { signal: options.signal })) {
      hash.update(chunk)
      options.onChunk?.(chunk)
      sizeBytes += chunk.length
      options.onBytes?.(sizeBytes)
    }
    return { digest: `sha256:${hash.digest('hex')}`, sizeBytes }
  }

  /** One that isn't there is no error. */
  async delete(key: string): Promise<void> {
    await storeCall(`deleting ${key}`, async () => {
      try {
        await this.#client.send(new DeleteObjectCommand({ Bucket: this.bucket, Key: key }))
      } catch (error) {
        if (s3Code(error) !== 'NoSuchKey') throw error
      }
    })
  }

  [Symbol.dispose](): void {
    this.#client.destroy()
  }
}
