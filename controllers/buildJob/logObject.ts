import { createHash } from 'node:crypto'
import { promisify } from 'node:util'
import { gunzip as gunzipCallback, gzip as gzipCallback } from 'node:zlib'
import { ShoalError, Transient } from '../../api/errors.ts'
import { logKey } from '../../artifacts/key.ts'
import type { Store } from '../../artifacts/store.ts'
import { type KeptPage, keepLog, loggedAttempts, type OverJob } from '../../queue/keptLog.ts'
import { type LogPart, type LogPlace, logParts } from '../../queue/log.ts'
import type { Database } from '../../runtime/sql.ts'

const gzip = promisify(gzipCallback)
const gunzip = promisify(gunzipCallback)

/** A page is what a reader holds in memory, and fetches at once. */
const pageBytes = 1 << 20
/** Of all attempts together; the last ones come first. One has 6 MiB at most. */
const maxLogBytes = 64 << 20

/**
 * Moves the log of a job that is over from the queue to the bucket: one object, pages of text as gzip members, which
 * `zcat` shows as a whole. The rows go last, when the object was read back. Dying anywhere leaves the rows; begun again
 * it writes the same object. False when somebody else was faster.
 */
export async function moveLog(
  { database, store, signal }: { database: Database; store: Store; signal: AbortSignal },
  job: OverJob,
): Promise<boolean> {
  const attempts = await loggedAttempts(database, job.id)
  const parts = attempts.reduce((sum, attempt) => sum + attempt.parts, 0)
  let room = maxLogBytes
  const kept = attempts.filter(({ bytes }, index) => {
    room -= bytes
    return index === 0 || room >= 0
  })
  const pages: KeptPage[] = []
  const members: Buffer[] = []
  let firstByte = 0
  for (const { attempt } of kept.reverse()) {
    for await (const { offset, text } of textPages(database, { jobId: job.id, attempt, offset: 0 })) {
      signal.throwIfAborted()
      const member = await gzip(text)
      pages.push({ attempt, offset, textBytes: text.length, firstByte, gzipBytes: member.length })
      members.push(member)
      firstByte += member.length
    }
  }
  if (pages.length === 0) return false
  const object = Buffer.concat(members)
  const digest = createHash('sha256').update(object).digest('hex')
  const key = logKey(job, digest)
  await store.put(key, object)
  if ((await store.readBack(key, { signal })).digest !== `sha256:${digest}`)
    throw new Transient('ChecksumMismatch', `${key}: other bytes were read back than were written`)
  const taken = await keepLog(database, job.id, { key, pages, parts })
  if (!taken) await store.delete(key)
  return taken
}

/** An attempt's log in the queue, by pages without a gap. */
async function* textPages(database: Database, at: LogPlace): AsyncGenerator<LogPart> {
  let page: { offset: number; texts: Buffer[]; end: number } = { offset: 0, texts: [], end: 0 }
  for (let parts = await logParts(database, at); parts.length > 0; ) {
    for (const { offset, text } of parts) {
      if (page.texts.length > 0 && (offset !== page.end || page.end - page.offset >= pageBytes)) {
        yield { offset: page.offset, text: Buffer.concat(page.texts) }
        page = { offset, texts: [], end: offset }
      }
      if (page.texts.length === 0) page.offset = offset
      page.texts.push(text)
      page.end = offset + text.length
    }
    parts = await logParts(database, { ...at, offset: page.end })
  }
  if (page.texts.length > 0) yield { offset: page.offset, text: Buffer.concat(page.texts) }
}

/** A page's text. Throws `NotFound` when the object is gone from the bucket. */
export async function readPage(store: Store, page: KeptPage & { key: string }, signal: AbortSignal): Promise<Buffer> {
  const { key, firstByte, gzipBytes, textBytes } = page
  const chunks: Uint8Array[] = []
  try {
    const last = firstByte + gzipBytes - 1
    for await (const chunk of store.read(key, { first: firstByte, last, signal })) chunks.push(chunk)
  } catch (error) {
    if (!(error instanceof ShoalError && error.code === 'ReplicaMissing')) throw error
    throw new ShoalError('NotFound', `the log is no longer in the home bucket (${key})`, { cause: error })
  }
  const text = await gunzip(Buffer.concat(chunks), { maxOutputLength: textBytes }).catch((cause: unknown) => {
    throw new Transient('ChecksumMismatch', `${key}: not what was written`, { cause })
  })
  if (text.length !== textBytes) throw new Transient('ChecksumMismatch', `${key}: not what was written`)
  return text
}
