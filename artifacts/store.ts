import { createHash } from 'node:crypto'
import type { Readable } from 'node:stream'
import {
  AbortMultipartUploadCommand,
  CompleteMultipartUploadCommand,
  CreateBucketCommand,
  CreateMultipartUploadCommand,
  DeleteObjectCommand,
  GetObjectCommand,
  HeadBucketCommand,
  HeadObjectCommand,
  ListMultipartUploadsCommand,
  type ListMultipartUploadsCommandOutput,
  ListPartsCommand,
  PutObjectCommand,
  S3Client,
  UploadPartCommand,
} from '@aws-sdk/client-s3'
import { getSignedUrl } from '@aws-sdk/s3-request-presigner'
import { Transient } from '../api/errors.ts'
import { s3Code, storeError } from './storeErrors.ts'

export interface StoreOptions {
  endpoint: string
  bucket: string
  accessKeyId: string
  secretAccessKey: string
  /** How long the store may be silent in any call. Default 10 s. */
  timeoutMs?: number
}

export interface PartToSign {
  key: string
  uploadId: string
  number: number
  sizeBytes: number
  /** base64 */
  sha256: string
  /** At most 600, the default. */
  expiresSeconds?: number
}

/** A request that may be made by whoever has it: PUT with exactly these headers. */
export interface PresignedPart {
  url: string
  headers: Record<string, string>
}

export interface UploadedPart {
  number: number
  etag: string
  sha256: string
  sizeBytes: number
}

/** An unfinished multipart upload. */
export interface OpenUpload {
  key: string
  uploadId: string
  startedAtMs: number
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

const MAX_EXPIRY_SECONDS = 600

/**
 * One bucket of any S3 server, path style. Every call throws Transient `StoreUnreachable` when the store can't answer,
 * `ReplicaMissing` when the bucket answers and the key isn't there, and `ChecksumMismatch` when it refuses bytes.
 */
export class Store implements Disposable {
  readonly endpoint: string
  readonly bucket: string
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
  }

  /** Does nothing when the bucket is there. */
  async createBucket(): Promise<void> {
    await this.#run(`creating bucket ${this.bucket}`, async () => {
      try {
        await this.#client.send(new CreateBucketCommand({ Bucket: this.bucket }))
      } catch (error) {
        if (s3Code(error) !== 'BucketAlreadyOwnedByYou') throw error
      }
    })
  }

  /** Starts a multipart upload and gives its id. */
  async startUpload(key: string): Promise<string> {
    return this.#run(`starting the upload of ${key}`, async () => {
      const { UploadId } = await this.#client.send(
        new CreateMultipartUploadCommand({
          Bucket: this.bucket,
          Key: key,
          ChecksumAlgorithm: 'SHA256',
          ChecksumType: 'COMPOSITE',
        }),
      )
      if (!UploadId) throw new Error('no upload id')
      return UploadId
    })
  }

  /** The right to upload one part, these bytes only: the checksum is signed. */
  async presignPart(part: PartToSign): Promise<PresignedPart> {
    const command = new UploadPartCommand({
      Bucket: this.bucket,
      Key: part.key,
      UploadId: part.uploadId,
      PartNumber: part.number,
      ChecksumSHA256: part.sha256,
      ContentLength: part.sizeBytes,
    })
    const url = await getSignedUrl(this.#client, command, {
      expiresIn: Math.min(part.expiresSeconds ?? MAX_EXPIRY_SECONDS, MAX_EXPIRY_SECONDS),
      // in the query a server may overlook it; as a signed header it can't be left out
      unhoistableHeaders: new Set(['x-amz-checksum-sha256']),
      signableHeaders: new Set(['host', 'content-length', 'x-amz-checksum-sha256']),
    })
    return { url, headers: { 'x-amz-checksum-sha256': part.sha256, 'content-length': String(part.sizeBytes) } }
  }

  /** Parts that an unfinished upload already has, in order. */
  async listParts(key: string, uploadId: string): Promise<UploadedPart[]> {
    return this.#run(`listing the parts of ${key}`, async () => {
      const parts: UploadedPart[] = []
      let marker: string | undefined
      do {
        const page = await this.#client.send(
          new ListPartsCommand({ Bucket: this.bucket, Key: key, UploadId: uploadId, PartNumberMarker: marker }),
        )
        for (const { PartNumber, ETag, ChecksumSHA256, Size } of page.Parts ?? []) {
          if (PartNumber && ETag && ChecksumSHA256)
            parts.push({ number: PartNumber, etag: ETag, sha256: ChecksumSHA256, sizeBytes: Size ?? 0 })
        }
        marker = page.IsTruncated ? page.NextPartNumberMarker : undefined
      } while (marker !== undefined)
      return parts
    })
  }

  /** Unfinished uploads of keys that start so; the oldest first. */
  async listUploads(prefix: string): Promise<OpenUpload[]> {
    return this.#run(`listing the uploads of ${prefix}`, async () => {
      const uploads: OpenUpload[] = []
      let from: { KeyMarker?: string; UploadIdMarker?: string } | undefined = {}
      while (from) {
        const page: ListMultipartUploadsCommandOutput = await this.#client.send(
          new ListMultipartUploadsCommand({ Bucket: this.bucket, Prefix: prefix, ...from }),
        )
        for (const { Key, UploadId, Initiated } of page.Uploads ?? [])
          if (Key && UploadId) uploads.push({ key: Key, uploadId: UploadId, startedAtMs: Initiated?.getTime() ?? 0 })
        from =
          page.IsTruncated && page.NextKeyMarker
            ? {
                KeyMarker: page.NextKeyMarker,
                ...(page.NextUploadIdMarker && { UploadIdMarker: page.NextUploadIdMarker }),
              }
            : undefined
      }
      return uploads.sort((a, b) => a.startedAtMs - b.startedAtMs)
    })
  }

  /**
   * Makes the object visible, whole. Nothing is overwritten: when an object is there, or the upload is gone, the call
   * succeeds if that object has the same size and checksum, so that it may be repeated.
   */
  async completeUpload(upload: {
    key: string
    uploadId: string
    parts: Omit<UploadedPart, 'sizeBytes'>[]
    sizeBytes: number
    checksum: string
  }): Promise<void> {
    const { key, checksum, sizeBytes } = upload
    await this.#run(`completing the upload of ${key}`, async () => {
      try {
        await this.#client.send(
          new CompleteMultipartUploadCommand({
            Bucket: this.bucket,
            Key: key,
            UploadId: upload.uploadId,
            IfNoneMatch: '*',
            MultipartUpload: {
              Parts: upload.parts.map((part) => ({
                PartNumber: part.number,
                ETag: part.etag,
                ChecksumSHA256: part.sha256,
              })),
            },
          }),
        )
      } catch (error) {
        if (!['PreconditionFailed', 'NoSuchUpload', 'ConditionalRequestConflict'].includes(s3Code(error) ?? ''))
          throw error
      }
      const there = await this.head(key)
      if (there.sizeBytes !== sizeBytes || there.checksum !== checksum)
        throw new Transient('ChecksumMismatch', `The object at ${key} is another one.`)
    })
  }

  /** Drops an unfinished upload; one that isn't there is no error. */
  async abortUpload(key: string, uploadId: string): Promise<void> {
    await this.#run(`aborting the upload of ${key}`, async () => {
      try {
        await this.#client.send(new AbortMultipartUploadCommand({ Bucket: this.bucket, Key: key, UploadId: uploadId }))
      } catch (error) {
        if (s3Code(error) !== 'NoSuchUpload') throw error
      }
    })
  }

  /** Writes a small object, over what is there. */
  async put(key: string, bytes: Uint8Array): Promise<void> {
    await this.#run(`writing ${key}`, () =>
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

  /** Size and SHA-256 as the store remembers them (`base64-N` for a multipart object); it doesn't read the bytes. */
  async head(key: string): Promise<{ sizeBytes: number; checksum: string | undefined }> {
    return this.#run(`looking at ${key}`, async () => {
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
    await this.#run(`deleting ${key}`, async () => {
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

  async #run<T>(doing: string, call: () => Promise<T>): Promise<T> {
    try {
      return await call()
    } catch (error) {
      throw storeError(error, doing)
    }
  }
}
