import type { Store } from '../../artifacts/store.ts'
import { keptPage } from '../../queue/keptLog.ts'
import { type LogPart, type LogPlace, leftOut, logParts } from '../../queue/log.ts'
import type { Database } from '../../runtime/sql.ts'
import { readPage } from './logObject.ts'

/** Where logs are: in the queue while a job is built and shortly after, then in the home bucket. */
export interface LogSources {
  database: Database
  homeStore: () => Promise<Store>
}

export interface LogPiece {
  /** With a mark before it where something was left out. */
  text: string
  /** The offset to go on from. */
  end: number
}

/** What there is of an attempt's log from a byte on, wherever it is, also while it moves. About 1 MB is in memory. */
export async function* readLog(sources: LogSources, at: LogPlace, signal: AbortSignal): AsyncGenerator<LogPiece> {
  let { offset } = at
  for (;;) {
    signal.throwIfAborted()
    const here = await logParts(sources.database, { ...at, offset })
    // What is not there any more has been moved, in one transaction.
    const parts = here.length > 0 ? here : await moved(sources, { ...at, offset }, signal)
    if (parts.length === 0) return
    for (const part of parts) {
      const mark = part.offset > offset ? leftOut(part.offset - offset) : ''
      offset = part.offset + part.text.length
      yield { text: mark + part.text.toString(), end: offset }
    }
  }
}

async function moved({ database, homeStore }: LogSources, at: LogPlace, signal: AbortSignal): Promise<LogPart[]> {
  const page = await keptPage(database, at)
  if (!page) return []
  const text = await readPage(await homeStore(), page, signal)
  const offset = Math.max(page.offset, at.offset)
  return [{ offset, text: text.subarray(offset - page.offset) }]
}
