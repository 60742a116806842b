import type { Store } from './store.ts'

/** Longer than any build, upload or copy may take. */
const STALE_MS = 24 * 3_600_000

/** Aborts the uploads that nobody will finish any more: their parts take up room and are seen by no one. How many. */
export async function sweepUploads(store: Store, nowMs: number): Promise<number> {
  const stale = (await store.uploads.list('')).filter((upload) => nowMs - upload.startedAtMs > STALE_MS)
  for (const { key, uploadId } of stale) await store.uploads.abort(key, uploadId)
  return stale.length
}
