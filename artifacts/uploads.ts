import {
  AbortMultipartUploadCommand,
  CompleteMultipartUploadCommand,
  CreateMultipartUploadCommand,
  ListMultipartUploadsCommand,
  type ListMultipartUploadsCommandOutput,
  ListPartsCommand,
  type S3Client,
  UploadPartCommand,
} from '@aws-sdk/client-s3'
import { getSignedUrl } from '@aws-sdk/s3-request-presigner'
import { Transient } from '../api/errors.ts'
import { s3Code, storeCall } from './storeErrors.ts'

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

/** Size and SHA-256 of an object as the store remembers them. */
export interface ObjectHead {
  sizeBytes: number
  /** base64; `base64-N` for one that came in N parts */
  checksum: string | undefined
}

const MAX_EXPIRY_SECONDS = 600

/** What a store says when it was completed before. */
const completedBefore = new Set(['PreconditionFailed', 'NoSuchUpload', 'ConditionalRequestConflict'])

/** The multipart uploads of one bucket. Errors are those of `Store`. */
export class Uploads {
  readonly #client: S3Client
  readonly #bucket: string
  readonly #head: (key: string) => Promise<ObjectHead>

  constructor(client: S3Client, bucket: string, head: (key: string) => Promise<ObjectHead>) {
    this.#client = client
    this.#bucket = bucket
    this.#head = head
  }

  /** Starts a multipart upload and gives its id. */
  async start(key: string): Promise<string> {
    return storeCall(`starting the upload of ${key}`, async () => {
      const { UploadId } = await this.#client.send(
        new CreateMultipartUploadCommand({
          Bucket: this.#bucket,
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
      Bucket: this.#bucket,
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
    return storeCall(`listing the parts of ${key}`, async () => {
      const parts: UploadedPart[] = []
      let marker: string | undefined
      do {
        const page = await this.#client.send(
          new ListPartsCommand({ Bucket: this.#bucket, Key: key, UploadId: uploadId, PartNumberMarker: marker }),
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
  async list(prefix: string): Promise<OpenUpload[]> {
    return storeCall(`listing the uploads of ${prefix}`, async () => {
      const uploads: OpenUpload[] = []
      let from: { KeyMarker?: string; UploadIdMarker?: string } | undefined = {}
      while (from) {
        const page: ListMultipartUploadsCommandOutput = await this.#client.send(
          new ListMultipartUploadsCommand({ Bucket: this.#bucket, Prefix: prefix, ...from }),
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
   * Makes the object visible, whole. Nothing is overwritten: the call succeeds when an object of the same size and checksum
   * is there, whoever completed it, so that it may be repeated, and made by several at once.
   */
  async complete(upload: {
    key: string
    uploadId: string
    parts: Omit<UploadedPart, 'sizeBytes'>[]
    sizeBytes: number
    checksum: string
  }): Promise<void> {
    const { key, checksum, sizeBytes } = upload
    await storeCall(`completing the upload of ${key}`, async () => {
      let failure: unknown
      try {
        await this.#client.send(
          new CompleteMultipartUploadCommand({
            Bucket: this.#bucket,
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
        failure = error
      }
      const there = await this.#head(key).catch((error) => {
        throw failure === undefined || completedBefore.has(s3Code(failure) ?? '') ? error : failure
      })
      if (there.sizeBytes !== sizeBytes || there.checksum !== checksum)
        throw new Transient('ChecksumMismatch', `The object at ${key} is another one.`)
    })
  }

  /** Drops an unfinished upload; one that isn't there is no error. */
  async abort(key: string, uploadId: string): Promise<void> {
    await storeCall(`aborting the upload of ${key}`, async () => {
      try {
        await this.#client.send(new AbortMultipartUploadCommand({ Bucket: this.#bucket, Key: key, UploadId: uploadId }))
      } catch (error) {
        if (s3Code(error) !== 'NoSuchUpload') throw error
      }
    })
  }
}
