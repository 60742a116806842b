import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { ShoalError } from '../../api/errors.ts'
import { parseTorrent, type Torrent } from '../../api/torrent.ts'
import { Announcer } from '../../swarm/announcer.ts'
import { diskErrors, makeFolder } from '../../swarm/disk.ts'
import { SwarmNode } from '../../swarm/node.ts'
import type { RateSchedule } from '../../swarm/rateSchedule.ts'
import type { Swarm } from '../../swarm/swarm.ts'
import type { Listen } from './commands.ts'

export interface SessionOptions {
  dir: string
  listen: Listen
  tracker?: string
  uploadLimit?: RateSchedule
  downloadLimit?: RateSchedule
}

export interface Session extends AsyncDisposable {
  readonly torrent: Torrent
  readonly swarm: Swarm
  readonly port: number
}

const log = {
  debug() {},
  info(fields: { err?: unknown }, message: string) {
    const reason = fields.err instanceof Error ? `: ${fields.err.message}` : ''
    console.error(`shoal: ${message}${reason}`)
  },
  error(fields: object, message: string) {
    this.info(fields, message)
  },
}

/**
 * A swarm of one torrent in `dir`, announced to its tracker. Disposing says goodbye and saves.
 * @throws ShoalError `NotFound` (no such torrent; when seeding, no such files), `Invalid`, `Conflict` (the port)
 */
export async function openSession(
  torrentPath: string,
  { dir, listen, tracker, uploadLimit, downloadLimit }: SessionOptions,
  { seed, signal }: { seed: boolean; signal: AbortSignal },
): Promise<Session> {
  const torrent = parseTorrent(await readTorrent(torrentPath))
  await using opened = new AsyncDisposableStack()
  const node = opened.use(await SwarmNode.listen({ ...listen, log, uploadLimit, downloadLimit }))
  if (!seed) await diskErrors(() => makeFolder(dir))
  const swarm = opened.use(
    await node.open({
      torrent,
      // as every client has it: a folder of that name, or a file
      dir: torrent.singleFile ? dir : join(dir, torrent.name),
      key: undefined,
      signal,
      ...(seed ? { mode: 'seed' } : { mode: 'download', stateFile: stateFileOf(torrent, dir) }),
    }),
  )
  const url = tracker ?? torrent.announce
  if (url !== undefined) opened.use(new Announcer({ url, swarm, log }))
  const all = opened.move()
  return { torrent, swarm, port: node.port, [Symbol.asyncDispose]: () => all.disposeAsync() }
}

/** What is verified already, beside the files while they are fetched. */
export function stateFileOf(torrent: Torrent, dir: string): string {
  return join(dir, `.${torrent.infoHash}.shoal`)
}

async function readTorrent(path: string): Promise<Buffer> {
  try {
    return await readFile(path)
  } catch (error) {
    throw new ShoalError('NotFound', `The torrent ${path} can't be read.`, { cause: error })
  }
}

/** Aborted by the first SIGINT or SIGTERM; a second one ends the process at once. */
export function stopSignal(): AbortSignal {
  const stop = new AbortController()
  for (const name of ['SIGINT', 'SIGTERM'] as const) process.once(name, () => stop.abort())
  return stop.signal
}

/** Resolves when the signal is aborted. */
export function aborted(signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    if (signal.aborted) resolve()
    else signal.addEventListener('abort', () => resolve(), { once: true })
  })
}
